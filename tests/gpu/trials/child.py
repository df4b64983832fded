"""Run one trial in this process: python -m trials.child CONTEXT '[MODULE, FUNCTION, OPTIONS]' RESULT."""

import json
import sys
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from .context import Context, Failed, Found, Skipped

OURS = ("model", "pipeline", "service", "trials")


def main(context_file: str, trial: str, result_file: str) -> None:
    given = json.loads(Path(context_file).read_text())
    context = Context(given["device"], Path(given["folder"]), given["shards"])
    result = result_of(context, *json.loads(trial))
    unfinished = Path(result_file).with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result))
    unfinished.rename(result_file)  # there, or not: a process that dies on the way has none


def result_of(context: Context, module: str, function: str, options: dict[str, Any]) -> dict[str, Any]:
    """The trial's state, words, figures and facts."""
    try:
        found: Found = getattr(import_module(f".{module}", __package__), function)(context, **options)
    except Skipped as why:
        return {"state": "skipped", "words": str(why)}
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] in OURS:
            raise
        return {"state": "skipped", "words": f"needs the package {missing.name}, which is not installed"}
    except Failed as why:
        traceback.print_exc()
        return {"state": "failed", "words": str(why)}
    return {"state": "passed", **asdict(found)}


if __name__ == "__main__":
    main(*sys.argv[1:])
