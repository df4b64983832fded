"""The worker's HTTP server: status page, metrics, health and control.

In the worker's process:

    server_process.py   start the server's process, keep it alive, answer its questions
    responses.py        the worker's response to each GET
    status.py           /api/status: what the page shows
    listener.py         the listening socket

In a process of its own, so that no client can make training wait:

    api.py              the FastAPI application: routes, OpenAPI, authentication
    worker_client.py    asks the worker over a pipe; caches its responses
    uvicorn_limits.py   bounds on slow, silent and too many clients
    tokens.py           the operators' token file
    page.html           the status page
"""
