"""Sources: what was written is read back; each broken input is one error that names its place."""

import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from jaxalign.data.sources import RequiredFields, load_source, where
from jaxalign.errors import UserError

ROWS = [{"prompt": f"q{i} é", "answer": str(i)} for i in range(7)]


def read(source):
    return [source[i] for i in range(len(source))]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    lines.insert(3, "")  # a blank line shifts the line numbers
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    return path


def save_dataset(folder, rows, chunks=2):
    """The layout of `datasets.save_to_disk`: Arrow streams named by state.json."""
    folder.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    names = []
    for start in range(0, len(rows), -(-len(rows) // chunks)):
        names.append(f"data-{len(names):05d}.arrow")
        part = table.slice(start, -(-len(rows) // chunks))
        with pyarrow.ipc.new_stream(str(folder / names[-1]), table.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))


def test_jsonl_round_trip(jsonl):
    source = load_source(str(jsonl))
    assert read(source) == ROWS
    assert where(source, 2) == f"{jsonl}:3" and where(source, 3) == f"{jsonl}:5"
    assert read(pickle.loads(pickle.dumps(source))) == ROWS


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"prompt": "a", ', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b"[1, 2]", "holds a JSON list"),
    ],
)
def test_broken_line_names_file_and_line(tmp_path, line, what):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n\n' + line + b'\n{"prompt": "fine"}\n')
    with pytest.raises(UserError, match=what) as error:
        load_source(str(path))
    assert f"{path}:3 " in str(error.value) and "\n" not in str(error.value)


def test_parquet_and_patterns(tmp_path):
    for number, part in enumerate((ROWS[:3], ROWS[3:])):
        table = pyarrow.Table.from_pylist(part)
        pyarrow.parquet.write_table(table, tmp_path / f"{number}.parquet", row_group_size=2)
    source = load_source(str(tmp_path / "*.parquet"))
    assert read(source) == ROWS
    assert where(source, 4) == f"{tmp_path / '1.parquet'} row 1"
    assert source[-1] == ROWS[-1]
    with pytest.raises(IndexError):
        source[len(ROWS)]


def test_damaged_parquet(tmp_path):
    path = tmp_path / "bad.parquet"
    path.write_bytes(b"PAR1 nothing else")
    with pytest.raises(UserError, match=r"bad\.parquet as Parquet"):
        load_source(str(path))


def test_saved_dataset(tmp_path):
    save_dataset(tmp_path / "one", ROWS)
    assert read(load_source(str(tmp_path / "one"))) == ROWS
    save_dataset(tmp_path / "several" / "train", ROWS[:5])
    save_dataset(tmp_path / "several" / "test", ROWS[5:])
    (tmp_path / "several" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read(load_source(f"{tmp_path / 'several'}?split=test")) == ROWS[5:]
    with pytest.raises(UserError, match="has the splits train, test"):
        load_source(str(tmp_path / "several"))
    with pytest.raises(UserError, match="without splits"):
        load_source(f"{tmp_path / 'one'}?split=train")
    with pytest.raises(UserError, match="save_to_disk"):
        load_source(str(tmp_path))
    victim = tmp_path / "one" / "data-00001.arrow"
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(UserError, match=r"data-00001\.arrow"):
        load_source(str(tmp_path / "one"))


def test_required_fields_name_file_row_and_field(jsonl, tmp_path):
    assert len(load_source({"path": str(jsonl), "fields": ["prompt", "answer"]})) == len(ROWS)
    with pytest.raises(UserError, match=r"rows\.jsonl:1: field 'solution' is missing.*answer"):
        load_source({"path": str(jsonl), "fields": ["solution"]})
    path = tmp_path / "null.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": null}\n')
    with pytest.raises(UserError, match=r"null\.jsonl:2: field 'prompt' is null"):
        load_source({"path": str(path), "fields": ["prompt"]})
    with pytest.raises(UserError, match="expected str"):
        RequiredFields([{"prompt": 3}], {"prompt": str})
    late = RequiredFields([{"prompt": "a"}, {}], ["prompt"], checked_rows=1)
    with pytest.raises(UserError, match="example 1: field 'prompt'"):
        late[1]


def test_rename(jsonl):
    source = load_source({"path": str(jsonl), "rename": {"question": "prompt"}})
    assert source[1] == {"question": "q1 é", "answer": "1"}
    with pytest.raises(UserError, match="'text' is missing"):
        load_source({"path": str(jsonl), "rename": {"prompt": "text"}})[0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.jsonl", "cannot read nowhere.jsonl"),
        ("nowhere/folder", "does not exist"),
        ("nothing-*.jsonl", "no file matches"),
        ({"kind": "csv"}, "kind 'csv' is not known"),
        ({"split": "train"}, "needs a path or a kind"),
        ("arithmetic?splits=train", "no option 'splits'"),
        ("arithmetic?train", "name=value"),
        ("tfds", "needs the option 'name'"),
        ("reasoning_gym:no_such_generator", "no_such_generator"),
        ("reasoning_gym:chain_sum?no_such_option=1", "no_such_option"),
        ("tfds:no_such_dataset?data_dir=/nowhere", "no_such_dataset"),
        ("tfds:mnist?data_dir=/nowhere", "not prepared"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message) as error:
        load_source(spec)
    assert "\n" not in str(error.value)


def test_empty_file(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="no examples"):
        load_source(str(tmp_path / "empty.jsonl"))


def test_reasoning_gym_splits_and_score():
    pytest.importorskip("reasoning_gym")
    from jaxalign.data.reasoning_gym import score

    spec = "reasoning_gym:chain_sum?size=60&max_terms=2&max_digits=1"
    train, held_out = load_source(spec + "&split=train"), load_source(spec + "&split=held_out")
    questions = [{e["prompt"] for e in read(s)} for s in (train, held_out)]
    assert not questions[0] & questions[1]
    assert len(questions[0]) == len(train) > len(held_out) > 0
    example = train[0]
    assert score("", f" {example['answer']}\n", example) == 1
    assert score("", f"<answer>0</answer> so <answer>{example['answer']}</answer>", example) == 1
    assert score("", "no idea", example) < 0.5
    primes = load_source("reasoning_gym:prime_factorization?size=1")[0]
    assert score("", "not a number", primes) == 0  # its own scorer raises here


def test_tfds_array_record_round_trip(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    import numpy as np

    class TinyQuestions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "prompt": tfds.features.Text(),
                "answer": np.int64,
                "hints": tfds.features.Sequence(tfds.features.Text()),
                "meta": {"level": np.float32, "by": tfds.features.Text()},
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._examples(0, 5), "test": self._examples(5, 7)}

        def _examples(self, start, stop):
            for i in range(start, stop):
                yield (
                    i,
                    {
                        "prompt": f"q{i} é",
                        "answer": i,
                        "hints": ["a", f"b{i}"],
                        "meta": {"level": i / 2, "by": "us"},
                    },
                )

        def _generate_examples(self):
            raise AssertionError("splits bring their own generators")

    TinyQuestions(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    found = {}
    for split, size in (("train", 5), ("test", 2)):
        source = load_source(f"tfds:tiny_questions:1.0.0?split={split}&data_dir={tmp_path}")
        assert len(source) == size
        found |= {e["answer"]: e for e in read(source)}
    assert found == {
        i: {
            "prompt": f"q{i} é",
            "answer": i,
            "hints": ["a", f"b{i}"],
            "meta": {"level": i / 2, "by": "us"},
        }
        for i in range(7)
    }
    with pytest.raises(UserError, match=r"no split 'validation'; it has .*train"):
        load_source(f"tfds:tiny_questions?split=validation&data_dir={tmp_path}")
