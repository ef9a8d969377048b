"""python -m jobs.benchmark"""

import sys

from jobs.benchmark.workflow import main

if __name__ == "__main__":
    sys.exit(main())
