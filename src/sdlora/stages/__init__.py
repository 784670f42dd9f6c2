"""The stages, in the order of the DAG: scrape, fit, caption, flip, encode, train, export (or adopt), sample, choose,
evaluate, report.
"""
