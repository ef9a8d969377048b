"""python -m jobs.calibrate"""

import sys

from jobs.calibrate.workflow import main

if __name__ == "__main__":
    sys.exit(main())
