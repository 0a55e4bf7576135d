"""The command line: verbs, and errors in one line.

A verb is a module of `mumoe.commands` with a frozen dataclass `Options` (its fields are the flags), a
function `run(options) -> None`, and optionally `default(arguments) -> Options` for values that come from files.
It is imported when it is called, so that ``mumoe --help`` stays quick.
Exit status: 0 done, 1 a job that failed, 2 a wrong call, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence

from mumoe.errors import JobError, UserError, names_no_file, reason_of, unknown_name
from mumoe.parsing import flag_of, parse
from mumoe.printable import prepare_streams

__all__ = ["VERBS", "guarded", "main"]

VERBS = {
    "demo": "the main job on embedded data, in minutes: train, look inside, edit, report",
    "train": "train a head or a whole network, over seeds and against partners; --resume continues",
    "tokenize": "text, JSON-lines or parquet files as the tokens that a language model is trained on",
    "evaluate": "loss and accuracy of a run, by class or by attribute",
    "predict": "labels of images, and the experts behind them",
    "generate": "text from a trained language model, with experts scaled on request",
    "decompose": "one MLP of a trained language model as sparse experts, measured beside controls",
    "analyze": "what each expert of a run does: interventions, load, images or tokens",
    "stability": "whether the experts of one seed reappear in others, beside random gates",
    "shift": "the same experts on shifted data: a split, other images, or corrupted ones",
    "report": "pages about a run, or comparing several, that open from disk",
    "dashboard": "a run in the browser: experts, images, edits and their effects",
    "sweep": "train and analyze heads of many experts, gates and seeds (Figures 3 and 9)",
    "fairness": "accuracy of subgroups and fairness metrics of a run, before and after edits",
    "audit": "groups of images, by experts and by attributes, that the model gets wrong more often",
    "edit": "correct a biased run by rewriting the experts of a subgroup; lambda chosen on validation",
    "export": "a run as ONNX, torch.export or safetensors, checked",
    "convert": "a timm or Hugging Face network with its MLPs, or any layers, as MuMoE blocks",
    "cost": "parameters and FLOPs of a layer, for every factorization (Table 1)",
}
"""Verb -> what it does, in one line. The verb's code is the module of the same name in `mumoe.commands`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    return guarded(_dispatch, list(sys.argv[1:] if argv is None else argv))


def guarded(dispatch: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command line, reporting errors in one line; returns the exit status.

    Args:
        dispatch: Runs the arguments without ``--debug``, which shows the traceback of an error.
        arguments: What follows the program's name.
    """
    prepare_streams()
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return dispatch(arguments)
    except UserError as error:
        return _fail(error, 2, debug)
    except JobError as error:
        return _fail(error, 1, debug)
    except KeyboardInterrupt as stop:
        if debug:
            raise
        _say(f"mumoe: interrupted. {stop}".rstrip())
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _fail(error, 1, debug)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(_help())
        return 0
    if arguments[0] == "--version":
        from mumoe import __version__

        sys.stdout.write(f"mumoe {__version__}\n")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise unknown_name("mumoe", "verb", verb, VERBS)
    command = importlib.import_module(f"mumoe.commands.{verb.replace('-', '_')}")
    before = command.default(rest) if hasattr(command, "default") else None
    options = parse(command.Options, rest, f"mumoe {verb}", before)
    if options is None:
        return 0
    try:
        command.run(options)
    except (UserError, JobError) as error:
        kind = UserError if isinstance(error, UserError) else JobError
        raise kind(_as_called(str(error), verb, command.Options)) from error
    except Exception as error:
        if not names_no_file(error):
            raise
        raise UserError(f"mumoe {verb}: expected the name of a file, got: {reason_of(error, 200)}.") from error
    return 0


def _as_called(text: str, verb: str, options: type) -> str:
    """A message of the API, worded for the command line: verbs for methods, flags for arguments in backticks."""
    text = re.sub(r"^(?:Run|Job|mumoe)\.\w+:", f"mumoe {verb}:", text)
    return re.sub(r"`(\w+)(?:=([^`]+))?`", lambda found: flag_of(options, found[1], found[2] or ""), text)


def _help() -> str:
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:<{width}}{text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "Multilinear mixture-of-experts layers: train, look inside, edit, export.",
            "",
            "usage: mumoe VERB [options]      mumoe VERB --help shows a verb's options",
            "",
            *lines,
            "",
            "  --debug     show the traceback of an error",
            "  --version   show the version",
            "",
        ]
    )


def _fail(error: BaseException, status: int, debug: bool) -> int:
    if debug:
        raise error
    text = " ".join(str(error).split())
    if not isinstance(error, UserError | JobError):
        text = f"mumoe: {type(error).__name__}: {text} (--debug shows where)"
    _say(text)
    return status


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
