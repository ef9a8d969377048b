"""python -m jobs.render"""

import sys

from jobs.render.workflow import main

if __name__ == "__main__":
    sys.exit(main())
