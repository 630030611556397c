"""The status page: what the whole cluster looks like from one node, in a browser, a terminal or as JSON.

`facts` is what a node says of itself, `journal` its latest log lines, `collect` asks all nodes, `merge` makes one
overview of their answers, `present` puts it into words, `map` and `flow` draw it, `html` and `live` serve these to
browsers.
"""
