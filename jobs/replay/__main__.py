"""python -m jobs.replay"""

import sys

from jobs.replay.workflow import main

if __name__ == "__main__":
    sys.exit(main())
