"""A server on loopback, in a thread."""

import threading
import time

import httpx
import openai
import uvicorn

from tmac.serve import Settings, create_app
from tmac.serve.server import bind

MODEL = "fake"
PATIENCE = 30


class Running:
    """A server that answers.

    Args:
        engine: whose texts it serves.
        settings: of `tmac.serve.Settings`.
    """

    def __init__(self, engine, **settings):
        self.engine = engine
        self.app = create_app(engine, Settings(**{"model_name": MODEL, **settings}))
        self.service = self.app.state.service
        self.listener = bind("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(self.app, http="h11", ws="none", log_config=None, lifespan="on", loop="asyncio")
        config.timeout_graceful_shutdown = 1
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def __enter__(self):
        self.thread.start()
        self.until(lambda: self.server.started)
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)
        return self

    def __exit__(self, *_):
        self.http.close()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        self.listener.close()

    def until(self, true):
        """Waits until something is true."""
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, "it has not come true"
            time.sleep(0.005)

    def client(self, api_key="any", kind=openai.OpenAI, **options):
        return kind(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=PATIENCE, **options)

    def post(self, path, body, **options):
        return self.http.post(f"/v1/{path}", json=body, **options)

    def complete(self, prompt="x", **fields):
        return self.post("completions", {"model": MODEL, "prompt": prompt, **fields})

    def chat(self, content="x", **fields):
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
        return self.post("chat/completions", body)

    def metric(self, name):
        """The sum of a counter over its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(int(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))
