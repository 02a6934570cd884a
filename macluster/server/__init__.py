"""The Jupyter server extension behind the sidebar of JupyterLab.

`extension` is what the server loads, `handlers` the REST interface and the websocket, `requests`
what they accept. `hub` tells every open page what has changed, as `patch` puts it; `views` makes
what the tabs draw. What may block is done by `workers`; `faults` end in the log.
"""
