"""python -m jobs.evaluate"""

import sys

from jobs.evaluate.workflow import main

if __name__ == "__main__":
    sys.exit(main())
