import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.training.mesh import batch_sharding, batch_shards, initialize_distributed, make_mesh, put_batch

ROOT = Path(__file__).resolve().parents[2]


def test_one_axis_takes_what_is_left():
    mesh = make_mesh(data=-1, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert dict(make_mesh(devices=jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert batch_shards(mesh) == 4


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, 16, 1), (-1, -1, 1), (0, 1, 1), (-2, 1, 1)])
def test_sizes_that_do_not_fit_are_named(sizes):
    with pytest.raises(UserError, match=rf"mesh.data={sizes[0]}, mesh.fsdp={sizes[1]}"):
        make_mesh(*sizes)


def test_rows_lie_over_data_and_fsdp_in_order():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    rows = np.arange(16).reshape(8, 2)
    placed = put_batch({"rows": rows}, mesh)["rows"]
    assert placed.sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(placed, rows)
    for shard in placed.addressable_shards:
        data, fsdp, _ = (int(i[0]) for i in np.where(mesh.device_ids == shard.device.id))
        np.testing.assert_array_equal(shard.data, rows[2 * (2 * data + fsdp) :][:2])


def test_rows_that_do_not_divide_are_named():
    with pytest.raises(UserError, match=r"batch\['x'\] has shape \(6, 2\).*4 device"):
        put_batch({"x": np.zeros((6, 2))}, make_mesh(data=2, fsdp=2, tensor=2))


def test_a_lone_process_joins_nothing():
    info = initialize_distributed({"coordinator_address": None})
    assert info == initialize_distributed() == (0, 1, jax.local_device_count(), jax.device_count())


def test_an_address_needs_its_numbers():
    with pytest.raises(UserError, match="needs process_id too"):
        initialize_distributed({"coordinator_address": "localhost:1", "num_processes": 2})


PROCESS = """
    import sys
    import jax
    jax.config.update("jax_num_cpu_devices", 2)
    from jaxalign.training.mesh import initialize_distributed, make_mesh, put_batch
    rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    config = {"coordinator_address": f"127.0.0.1:{port}", "num_processes": 2, "process_id": rank}
    info = initialize_distributed(config)
    assert info == initialize_distributed(config) == (rank, 2, 2, 4), info
    import numpy as np
    from jaxalign.training.checkpoints import Checkpointer
    from jaxalign.training.sharding import Rule, shardings_for, state_shardings
    from jaxalign.training.state import abstract_state, create_state
    from jaxalign.training.step import make_train_step
    from tests.training import toy
    P = jax.sharding.PartitionSpec
    mesh = make_mesh(data=2, fsdp=2)
    rules = [Rule(r"embed/embedding", P(None, "fsdp")), Rule(r"layers/mlp/up/kernel", P(None, "fsdp")), Rule(".*", P())]
    optimizer = toy.optimizer()
    make = lambda: toy.params()
    shapes = jax.eval_shape(make)
    abstract = abstract_state(shapes, optimizer, jax.random.key(1))
    shardings = state_shardings(abstract, shardings_for(shapes, rules, mesh), mesh)
    params = jax.jit(make, out_shardings=shardings.params)()
    state = create_state(params, optimizer, jax.random.key(1), shardings=shardings)
    step = make_train_step(toy.loss_fn, optimizer, mesh=mesh, shardings=shardings)
    whole = toy.batch()
    mine = jax.tree.map(lambda a: a[4 * rank : 4 * rank + 4], whole)
    state, metrics = step(state, put_batch(mine, mesh))
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(1, state, {"position": 8})
    if rank == 0:
        print("loss", repr(float(metrics["loss"])))
"""


def test_two_processes_train_and_save_what_one_process_restores(tmp_path):
    from jaxalign.training.checkpoints import Checkpointer
    from jaxalign.training.state import abstract_state, create_state
    from jaxalign.training.step import make_train_step
    from tests.training import toy

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS), str(rank), str(port), str(tmp_path / "run")],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    optimizer = toy.optimizer()
    alone = create_state(toy.params(), optimizer, jax.random.key(1))
    alone, metrics = make_train_step(toy.loss_fn, optimizer)(alone, toy.batch())
    np.testing.assert_allclose(float(outputs[0][0].split()[-1]), metrics["loss"], rtol=1e-6)
    with Checkpointer(tmp_path / "run") as checkpointer:
        restored = checkpointer.restore_latest(abstract_state(toy.params(), optimizer, jax.random.key(1)))
    assert (restored.step, restored.data_state) == (1, {"position": 8})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), restored.state.params, alone.params
    )
