import gc
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.training.checkpoints import Checkpointer
from jaxalign.training.mesh import make_mesh
from jaxalign.training.sharding import Rule, shardings_for
from jaxalign.training.state import with_shardings
from tests.training import toy

ROOT = Path(__file__).resolve().parents[2]
P = jax.sharding.PartitionSpec
# Where one read fails, others of the same restore may end after Orbax has closed its event loop, and say so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CONFIG = {"name": "toy", "workdir": "a", "train": {"steps": 8}, "optimizer": {"learning_rate": 0.01}}


@pytest.fixture(autouse=True, scope="module")
def late_reads_are_over():
    """Within this module, whose tests forgive them."""
    yield
    gc.collect()


def small(value=0.0):
    return {"w": jnp.full((3, 4), float(value)), "nothing": {}, "pair": (jnp.int32(5), jnp.bfloat16(value))}


def same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)

    def check(a, b):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    jax.tree.map(check, actual, expected)


def save(folder, steps, *, config=CONFIG, make=small, **options):
    with Checkpointer(folder, config=config, **options) as checkpointer:
        for step in steps:
            checkpointer.save(step, make(step), {"position": 10 * step})


def restore(folder, *, config=CONFIG, abstract=None, **options):
    with Checkpointer(folder, config=config, **options) as checkpointer:
        return checkpointer.restore_latest(small() if abstract is None else abstract)


def data_files(folder, step):
    """The chunks of arrays, the largest first; they are named by their numbers: 0.0, 0.1, ..."""
    return sorted((folder / str(step) / "state").rglob("[0-9]*"), key=lambda file: -file.stat().st_size)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("compress", [True, False])
def test_the_newest_comes_back_and_the_oldest_go(tmp_path, asynchronous, compress):
    assert restore(tmp_path) is None
    save(tmp_path, [1, 2, 3], keep=2, asynchronous=asynchronous, compress=compress)
    state, data_state, step = restore(tmp_path)
    assert (data_state, step) == ({"position": 30}, 3)
    same_bits(state, small(3))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


@pytest.mark.parametrize("cut", [3, 5])
def test_an_interrupted_run_equals_a_straight_one(tmp_path, cut):
    """Bit for bit: parameters, moments, counts, keys, data position; across the warm-up and after it."""
    run = toy.Run()
    straight, _ = run.advance(run.start(), 0, 8)
    state, position = run.advance(run.start(), 0, cut)
    with Checkpointer(tmp_path, config=CONFIG) as checkpointer:
        checkpointer.save(cut, state, {"position": position})
    again = toy.Run()  # compiled anew, as in a new process
    state, data_state, step = restore(tmp_path, abstract=again.start())
    assert step == cut
    state, _ = again.advance(state, data_state["position"], 8 - cut)
    same_bits(state, straight)


def test_saving_does_not_disturb_the_training_that_goes_on(tmp_path):
    """An asynchronous save must hold the values of its moment although the next step reuses their memory."""
    step = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    state = {"w": jnp.zeros((512, 1024))}
    with Checkpointer(tmp_path, asynchronous=True, keep=9) as checkpointer:
        for number in range(1, 5):
            state = step(state)
            checkpointer.save(number, state, None)
            for _ in range(3):
                state = step(state)
        for number in range(4, 0, -1):
            restored = checkpointer.restore_latest(state)
            np.testing.assert_array_equal(restored.state["w"], 4 * number - 3)
            shutil.rmtree(tmp_path / str(number))


def test_restoring_onto_another_mesh_and_dtype(tmp_path):
    values = np.arange(64, dtype=np.float32).reshape(8, 8)

    def shardings(mesh, spec):
        return shardings_for({"w": values}, [Rule("w", spec)], mesh)

    written = jax.device_put({"w": values}, shardings(make_mesh(fsdp=4, tensor=2), P("fsdp", "tensor")))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, written, None)
        layout = shardings(make_mesh(data=1, fsdp=2, tensor=4), P("tensor", None))
        for dtype in (jnp.float32, jnp.bfloat16):
            wanted = with_shardings({"w": jax.ShapeDtypeStruct((8, 8), dtype)}, layout)
            state = checkpointer.restore_latest(wanted).state
            assert state["w"].dtype == dtype
            assert state["w"].sharding == layout["w"]
            np.testing.assert_array_equal(np.asarray(state["w"], np.float32), values)


def truncate(folder):
    os.truncate(data_files(folder, 3)[0], 20)


def remove_data(folder):
    data_files(folder, 3)[0].unlink()


def flip_a_byte(folder):
    file = data_files(folder, 3)[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def remove_item(folder):
    shutil.rmtree(folder / "3" / "data")


def garble_json(folder):
    for file in (folder / "3" / "about").glob("*"):
        file.write_text("{")


@pytest.mark.parametrize("damage", [truncate, remove_data, flip_a_byte, remove_item, garble_json])
def test_a_damaged_newest_checkpoint_falls_back(tmp_path, capsys, damage):
    def make(value):
        return {"w": jnp.full((64, 64), float(value))}

    save(tmp_path, [2, 3], make=make)
    damage(tmp_path)
    restored = restore(tmp_path, abstract=make(0))
    assert (restored.step, restored.data_state) == (2, {"position": 20})
    same_bits(restored.state, make(2))
    assert "warning: checkpoint 3" in capsys.readouterr().out
    assert (tmp_path / "3.broken").is_dir(), "what is damaged is kept for a look"
    # The run goes on and reaches step 3 again.
    with Checkpointer(tmp_path, config=CONFIG) as checkpointer:
        checkpointer.restore_latest(make(0))
        checkpointer.save(3, make(33), {"position": 33})
    same_bits(restore(tmp_path, abstract=make(0)).state, make(33))


def test_if_none_can_be_read_nothing_is_touched(tmp_path):
    save(tmp_path, [2, 3])
    for step in (2, 3):
        for file in data_files(tmp_path, step):
            file.write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"none of the checkpoints in .* can be read"):
        restore(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path, capsys):
    """Kill -9 in the middle of a save."""
    save(tmp_path, [1])
    script = """
        import os, sys, threading, time
        import jax.numpy as jnp
        from jaxalign.training.checkpoints import Checkpointer
        folder = sys.argv[1]
        def kill():
            while not any("tmp" in name for name in os.listdir(folder)):
                pass
            os.kill(os.getpid(), 9)
        with Checkpointer(folder) as checkpointer:
            threading.Thread(target=kill, daemon=True).start()
            for step in range(2, 40):
                checkpointer.save(step, {"w": jnp.ones((16384, 2048))}, None)
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], cwd=ROOT, env=environment, check=False
    )
    assert process.returncode == -9
    left = [path.name for path in tmp_path.iterdir() if "orbax-checkpoint-tmp" in path.name]
    assert left
    assert restore(tmp_path).step == 1
    assert f"warning: {left[0]} is a half-written checkpoint; removed" in capsys.readouterr().out
    assert not [path for path in tmp_path.iterdir() if "orbax-checkpoint-tmp" in path.name]


def test_another_config_is_refused_by_key(tmp_path):
    save(tmp_path, [1])
    other = CONFIG | {"optimizer": {"learning_rate": 0.02}, "seed": 1}
    with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.01 there, 0.02 now; seed: 'absent' there, 1 now"):
        restore(tmp_path, config=other)
    free = CONFIG | {"workdir": "b", "train": {"steps": 80}, "mesh": {"fsdp": 2}}
    assert restore(tmp_path, config=free).step == 1
    with pytest.raises(UserError, match="workdir: 'a' there, 'b' now"):
        restore(tmp_path, config=free, free_keys=("mesh.*", "train.*"))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["1"]


def test_a_state_of_another_form_is_refused_by_name(tmp_path):
    save(tmp_path, [1])
    wider = small() | {"w": jnp.zeros((3, 5))}
    with pytest.raises(UserError, match=r"w has shape \(3, 4\) there, \(3, 5\) now"):
        restore(tmp_path, abstract=wider)
    with pytest.raises(UserError, match="v is not in the checkpoint"):
        restore(tmp_path, abstract=small() | {"v": jnp.zeros(2)})
    with pytest.raises(UserError, match="pair/0 is only in the checkpoint"):
        restore(tmp_path, abstract={"w": jnp.zeros((3, 4))})


def test_steps_of_another_run_are_not_overwritten(tmp_path):
    save(tmp_path, [1])
    with Checkpointer(tmp_path, config=CONFIG) as checkpointer:
        with pytest.raises(UserError, match="already holds a checkpoint of step 1"):
            checkpointer.save(1, small(9), None)
        checkpointer.restore_latest(small())
        checkpointer.save(1, small(9), None)
    same_bits(restore(tmp_path).state, small(1))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_no_room_is_one_error_and_earlier_checkpoints_stay(tmp_path, asynchronous):
    """The limit on the size of a file is a real write error in the middle of the data."""
    random = np.random.default_rng(0)

    def large():
        return {"w": jnp.asarray(random.normal(size=(512, 1024)), jnp.float32)}

    first = large()

    def save(checkpointer, step, state):
        checkpointer.save(step, state, None)
        checkpointer.wait()  # an asynchronous save may fail only here

    with Checkpointer(tmp_path, keep=1, asynchronous=asynchronous) as checkpointer:
        save(checkpointer, 1, first)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        try:
            with pytest.raises(UserError, match=r"could not be written to .*File too large.*still there: 1\."):
                save(checkpointer, 2, large())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]
        same_bits(checkpointer.restore_latest(first).state, first)
        third = large()
        save(checkpointer, 3, third)  # with room again the same run goes on
        same_bits(checkpointer.restore_latest(first).state, third)


def test_too_little_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpointer:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
        with pytest.raises(UserError, match=r"No space|MB are needed, 0 MB are free"):
            checkpointer.save(1, small(), None)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot keep checkpoints in .*file/run: Not a directory; give another workdir"
    ):
        Checkpointer(tmp_path / "file" / "run")


def test_a_read_only_folder_is_named():
    """As an ordinary user, also where the tests run as root."""
    script = """
        import os, sys
        from jaxalign.training.checkpoints import Checkpointer, UserError
        if os.getuid() == 0:
            os.seteuid(65534)
        try:
            Checkpointer(sys.argv[1])
        except UserError as error:
            print(error)
    """
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(folder)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"cannot keep checkpoints in {folder}: Permission denied; give another workdir" in done.stdout
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_folder_in_use_by_a_live_process_is_refused(tmp_path):
    script = """
        import sys, time
        from jaxalign.training.checkpoints import Checkpointer
        with Checkpointer(sys.argv[1]):
            print("held", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is in use by process {process.pid}"):
            Checkpointer(tmp_path)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    began = time.monotonic()
    Checkpointer(tmp_path).close()  # a dead process holds nothing
    assert time.monotonic() - began < 30
