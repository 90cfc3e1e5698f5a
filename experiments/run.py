"""Runs one experiment from one config file.

  python -m experiments.run --config=configs/grpo_qwen.py
  python -m experiments.run --config=configs/grpo_qwen.py:tiny --config.steps=5

Flags:
  --config=FILE[:ARGUMENT]   Python file with get_config([argument]); required
  --config.KEY=VALUE         overrides one key of the config; its type is checked
  --workdir=FOLDER           where everything is written; default runs/<config>[-<argument>].
                             The same command with the same workdir resumes the run.
  --debug                    shows the traceback of every error
  --help                     this text; together with --config also the keys of that config

Compiled programs are kept in ~/.cache/jaxalign/xla and reused by later runs; the environment
variable JAXALIGN_CACHE names another folder, or `off`.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from jaxalign.errors import UserError, user_message


def split_arguments(argv: Sequence[str], more: Mapping[str, str] | None = None) -> tuple[flags.FlagValues, list[str]]:
    """Splits the command line into the program's own flags and the config's overrides.

    `more` are text flags that this program has besides (name -> what it says).
    """
    own = flags.FlagValues()
    flags.DEFINE_string("config", None, "config file", flag_values=own)
    flags.DEFINE_string("workdir", None, "output folder", flag_values=own)
    flags.DEFINE_bool("debug", False, "show tracebacks", flag_values=own)
    flags.DEFINE_bool("help", False, "show help", flag_values=own, short_name="h")
    for name, meaning in (more or {}).items():
        flags.DEFINE_string(name, None, meaning, flag_values=own)
    mine, overrides = [], []
    target = mine
    for argument in argv[1:]:
        if argument.startswith("-"):
            is_override = argument.lstrip("-").startswith(("config.", "noconfig."))
            target = overrides if is_override else mine
        # A word without a dash is the value of the flag before it: `--config.steps 5`.
        target.append(argument)
    try:
        rest = own([argv[0], *mine])[1:]
    except flags.Error as error:
        raise UserError(f"{error} (--help lists the flags)") from error
    if rest:
        raise UserError(f"cannot read the argument '{rest[0]}' (--help lists the flags)")
    return own, overrides


def use_compilation_cache() -> None:
    """Points JAX at the folder of compiled programs, unless the user's JAX settings name one."""
    import jax

    place = os.environ.get("JAXALIGN_CACHE", "~/.cache/jaxalign/xla")
    if place == "off" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(place).expanduser()))
    # The default skips whatever compiles in under a second, which adds up over a start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def read_config(own: flags.FlagValues, overrides: Sequence[str], help_text: str):
    """The config with its overrides; None if help was asked for and is given."""
    from jaxalign.training import configuration

    if own.help:
        print(help_text)
    if own.config is None:
        if own.help:
            return None
        raise UserError("--config=FILE is missing, for example --config=configs/grpo_qwen.py")
    config = configuration.load_config(own.config)
    configuration.apply_overrides(config, overrides)
    if own.help:
        print(f"Keys of {own.config}:")
        for key, value in configuration.flatten(config).items():
            print(f"  --config.{key}={value!r}")
        return None
    return config


def start(own: flags.FlagValues, overrides: Sequence[str]) -> None:
    """Loads the config, applies the overrides and hands over to the experiment it names."""
    from jaxalign.training import configuration

    config = read_config(own, overrides, __doc__ or "")
    if config is None:
        return
    name = config.get("experiment")
    if not isinstance(name, str) or importlib.util.find_spec(f"experiments.{name}") is None:
        raise UserError(f"{own.config}: experiment={name!r} names no module of experiments/ with a run()")
    use_compilation_cache()
    workdir = own.workdir or configuration.default_workdir(own.config)
    importlib.import_module(f"experiments.{name}").run(config, workdir)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` and returns the exit code: 0, 2 user's mistake, 130 Ctrl-C."""
    argv = sys.argv if argv is None else argv
    debug = "--debug" in argv
    try:
        start(*split_arguments(argv))
    except KeyboardInterrupt:
        print("experiments.run: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = user_message(error)
        if debug or message is None:
            raise
        print(f"experiments.run: error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
