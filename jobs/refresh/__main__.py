"""python -m jobs.refresh"""

import sys

from jobs.refresh.workflow import main

if __name__ == "__main__":
    sys.exit(main())
