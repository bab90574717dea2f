"""One contender in a process of its own: reads requests, one JSON object a line, and answers each with a line.

    {"variants": bits}       -> {"variants": [...]}
    {"make": {...}}          -> {}             the arguments of Contender
    {"configure": {...}}     -> {"bytes": ..., "error": ..., "copies": ...}
    {"turn": seconds}        -> {"times": [...]}

An answer {"missing": why} means that the library, or this variant of it, is not there.
"""

import importlib
import json
import os
import sys


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not print into the answers
    contender = None
    for line in sys.stdin:
        (request, value), = json.loads(line).items()
        try:
            module = importlib.import_module(f"contenders.{sys.argv[1]}")
            match request:
                case "variants":
                    answer = {"variants": module.variants(value)}
                case "make":
                    contender = module.Contender(**value)
                    answer = {}
                case "configure":
                    answer = contender.configure(**value)
                case "turn":
                    answer = {"times": contender.turn(value)}
        except (ImportError, NotImplementedError) as why:
            answer = {"missing": str(why)}
        print(json.dumps(answer), file=answers, flush=True)


main()
