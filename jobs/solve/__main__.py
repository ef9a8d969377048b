"""python -m jobs.solve"""

import sys

from jobs.solve.workflow import main

if __name__ == "__main__":
    sys.exit(main())
