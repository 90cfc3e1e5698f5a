"""`report.html` from the files of a run: complete, escaped, and rebuilt at any time."""

import html.parser
import json
import re

import pytest

from experiments import report as command
from jaxalign.training.report import environment, read_summary, write_report, write_summary
from jaxalign.training.writers import CompletionsWriter, JsonlWriter

VOID = {"meta", "br", "circle", "line", "rect", "path"}
EVIL = "<script>alert(\"x\")</script> & 'é'"


class Page(html.parser.HTMLParser):
    """Checks that tags are nested and closed, and collects texts by the class of their element."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class", "")))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((*self.open[-1], data.strip()) if self.open else ("", "", data.strip()))

    def of(self, tag, kind=None):
        return [text for t, k, text in self.texts if t == tag and kind in (None, k) and text]


def write_run(workdir, steps=12, **summary):
    """The files of a run; the summary is that of a finished one with `summary` changed."""
    metrics = JsonlWriter(workdir)
    completions = CompletionsWriter(workdir)
    for step in range(1, steps + 1):
        scalars = {
            "loss": 1 / step,
            "reward/mean": step / steps,
            "seconds": 2.0,
            "tokens_per_second": 900.0,
            "lag": 1.0,
        }
        metrics.write_scalars(step, scalars | ({"eval/rate": 0.5} if step % 6 == 0 else {}))
        rows = [{"prompt": f"p{i}", "completion": f"step {step} row {i}", "reward": i / 10} for i in range(10)]
        completions.write(step, rows)
    metrics.close()
    completions.close()
    entries = {
        "title": "GRPO on sums",
        "status": "finished",
        "wall_seconds": 125.0,
        "facts": {"model": "tiny", "mesh": "1 x 1 x 1"},
        "evaluations": [
            {
                "name": "solve rate",
                "before": {"value": 0.125, "low": 0.06, "high": 0.2, "count": 256},
                "after": {"value": 0.725, "low": 0.65, "high": 0.79, "count": 1256},
            }
        ],
        "config": {"train": {"steps": 12}, "name": "grpo"},
        "environment": {"jax": "0.0"},
        "commands": {"resume": "python -m experiments.run --config=x"},
    }
    write_summary(workdir, **entries | summary)
    return workdir


def page_of(workdir):
    return Page(write_report(workdir).read_text(encoding="utf-8"))


def test_everything_of_a_run_is_on_the_page(tmp_path):
    page = page_of(write_run(tmp_path))
    assert page.of("title")[0] == page.of("h1")[0] == "GRPO on sums"
    assert page.of("span", "badge finished") == ["finished"]
    assert page.of("h2") == ["Before and after", "Curves", "Completions", "Commands", "Run", "Environment", "Config"]
    tiles = dict(zip(page.of("span")[1:], page.of("b"), strict=False))
    assert tiles == {
        "solve rate, after": "72.5 %",
        "steps": "12",
        "wall time": "2 min 05 s",
        "tokens/s, median": "900",
        "s per step, median": "2",
    }
    assert page.of("td")[:3] == ["solve rate", "12.5 %", "72.5 %"]
    assert page.of("small") == ["6.0 % to 20.0 %, n = 256", "65.0 % to 79.0 %, n = 1,256"]
    assert page.of("td", "gain up") == ["+60.0 points"]
    assert page.of("figcaption") == ["reward/mean", "loss", "eval/rate", "lag", "seconds", "tokens_per_second"]
    assert page.of("summary")[0] == "3 more metrics"
    assert page.tags.count("svg") == 6 + 1
    assert page.of("pre") == ["python -m experiments.run --config=x", 'train.steps = 12\nname = "grpo"']
    assert dict(zip(page.of("dt"), page.of("dd"), strict=True)) == {"model": "tiny", "mesh": "1 x 1 x 1", "jax": "0.0"}


def test_completions_of_an_early_a_middle_and_the_last_step(tmp_path):
    page = page_of(write_run(tmp_path))
    assert page.of("h3") == ["step 1", "step 7", "step 12"]
    assert [text for text in page.of("p") if "step 7" in text] == [f"step 7 row {i}" for i in (0, 2, 4, 6, 8)]
    assert page.of("span", "reward")[:5] == [f"reward {value}" for value in ("0", "0.2", "0.4", "0.6", "0.8")]


def test_the_page_needs_nothing_else(tmp_path):
    text = write_report(write_run(tmp_path)).read_text()
    assert not re.findall(r"""(?:src|href)=|url\(|@import|https?://""", text)
    assert "<script" not in text


def test_what_comes_from_a_model_or_a_user_is_escaped(tmp_path):
    workdir = write_run(
        tmp_path,
        title=EVIL,
        status=EVIL,
        facts={"model": EVIL, EVIL: EVIL},
        evaluations=[{"name": EVIL, "before": None, "after": {"value": 1.0}}],
        config={EVIL: EVIL},
        environment={EVIL: EVIL},
        commands={EVIL: EVIL},
    )
    metrics = JsonlWriter(workdir, last_step=12)
    metrics.write_scalars(13, {EVIL: 1.0, f"eval/{EVIL}": 2.0})
    metrics.close()
    completions = CompletionsWriter(workdir, last_step=12)
    completions.write(13, [{"prompt": EVIL, "completion": EVIL, "reward": None}])
    completions.close()
    page = page_of(workdir)
    assert "script" not in page.tags
    for tag in ("h1", "title", "dt", "dd", "td", "figcaption", "p"):
        assert EVIL in page.of(tag), tag
    assert page.of("p").count(EVIL) == 3, "lead, prompt and completion"
    assert "not scored" in page.of("span", "reward")


def test_a_run_of_which_only_a_part_is_there(tmp_path):
    """Only metrics: a run that was killed. Only a summary: one that failed before its first step."""
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "lo')
    page = page_of(tmp_path / "killed")
    assert page.of("h1") == ["killed"]
    assert page.of("p") == ["no finite values"]
    assert page.of("h2") == ["Curves"]
    (tmp_path / "early").mkdir()
    write_summary(tmp_path / "early", status="interrupted", facts={"model": "m"})
    page = page_of(tmp_path / "early")
    assert page.of("span", "badge other") == ["interrupted"]
    assert page.of("h2") == ["Run"]


def test_values_that_are_no_rates_and_values_that_are_missing(tmp_path):
    evaluations = [
        {"name": "kl", "unit": "nats", "before": {"value": 0.0}, "after": {"value": 1.5, "low": 1.25, "high": 1.75}},
        {"name": "length", "unit": "tokens", "before": {"value": 30.0}, "after": {"value": None}},
        {"name": "rate", "after": {"value": 0.5, "low": 0.5, "high": 0.5}},
    ]
    page = page_of(write_run(tmp_path, evaluations=evaluations))
    cells = page.of("td", "")
    assert cells == [
        "kl", "0 nats", "1.5 nats", "length", "30 tokens", "not measured", "rate", "not measured", "50.0 %",
    ]  # fmt: skip
    assert page.of("td", "gain ") == ["+1.5 nats"], "more nats are neither better nor worse"
    assert page.of("small")[0] == "1.25 to 1.75"


def test_the_summary_grows_entry_by_entry(tmp_path):
    assert read_summary(tmp_path) == {}
    write_summary(tmp_path, status="running", facts={"a": 1})
    write_summary(tmp_path, status="finished")
    assert read_summary(tmp_path) == {"status": "finished", "facts": {"a": 1}}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    with pytest.raises(TypeError):
        write_summary(tmp_path, bad=object())
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"


def test_a_folder_of_no_run_is_named(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"has neither metrics.jsonl nor summary.json: name the folder of a run"):
        write_report(tmp_path)
    assert command.main([f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"experiments.report: error: {tmp_path} has neither")


def test_the_command_writes_the_report_again(tmp_path, capsys):
    write_run(tmp_path)
    assert command.main([f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert page_of(tmp_path).of("h1") == ["GRPO on sums"]


def test_the_environment_names_versions_and_devices():
    found = environment()
    assert {"Python", "jax", "optax", "devices", "machine"} <= found.keys()
    assert found["devices"].startswith("8 x ")
