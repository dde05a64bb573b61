"""`python -m engine.bench.gpu`: what `unmask bench gpu` does, where only the engine's packages are installed."""

import argparse
import sys

from engine.bench.gpu.command import add_arguments, run
from engine.core.errors import ConfigError

parser = argparse.ArgumentParser(prog="python -m engine.bench.gpu")
add_arguments(parser)
try:
    sys.exit(run(parser.parse_args()))
except ConfigError as error:
    sys.stderr.write(f"unmask: {error}\n")
    sys.exit(2)
