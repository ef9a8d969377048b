"""What people run: `python -m jobs.NAME`, one thin module for each intent."""
