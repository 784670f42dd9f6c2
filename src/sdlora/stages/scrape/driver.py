"""Selenium's commands for a browser behind a pipe: what chromedriver does on a port, without the port."""

from collections.abc import Callable
from typing import Any

from selenium.common.exceptions import JavascriptException, TimeoutException, WebDriverException
from selenium.webdriver.remote.command import Command

from sdlora.stages.scrape.devtools import Chromium

START_S = 60.0


class PipeExecutor:
    """Takes the place of Selenium's connection to a driver: knows the commands that a search needs.

    Scripts run in a world of their own: they see the page's elements, and nothing that its scripts have put in the
    place of the browser's functions.
    """

    keep_alive = True

    def __init__(self, browser: Chromium, page_load_s: float, script_s: float) -> None:
        self._browser, self._page_load_s, self._script_s = browser, page_load_s, script_s
        self._session: str | None = None
        self._world: int | None = None
        self._commands: dict[str, Callable[[dict[str, Any]], Any]] = {
            Command.NEW_SESSION: self._new_session,
            Command.GET: self._get,
            Command.GET_TITLE: lambda params: self._run("return document.title", []),
            Command.W3C_EXECUTE_SCRIPT: lambda params: self._run(params["script"], params["args"]),
            Command.QUIT: lambda params: self._browser.close(),
        }

    def execute(self, command: str, params: dict[str, Any]) -> dict[str, Any]:
        """Run one of Selenium's commands.

        Raises:
            WebDriverException: If it fails, or is none that a search needs.
        """
        if command not in self._commands:
            raise WebDriverException(f"{command} is not a command of this browser")
        return {"value": self._commands[command](params)}

    def close(self) -> None:
        """Nothing is left open: the pipe closes with the browser."""

    def _new_session(self, params: dict[str, Any]) -> dict[str, Any]:
        """Attach to a fresh page that opens no dialog, saves no file."""
        call = self._browser.call
        target = call("Target.createTarget", START_S, url="about:blank")["targetId"]
        self._session = call("Target.attachToTarget", START_S, targetId=target, flatten=True)["sessionId"]
        call("Browser.setDownloadBehavior", START_S, behavior="deny")
        call("Page.enable", START_S, self._session)
        return {"sessionId": str(self._session), "capabilities": {"browserName": "chromium"}}

    def _get(self, params: dict[str, Any]) -> None:
        self._world = None
        self._browser.forget_events()
        done = self._browser.call("Page.navigate", self._page_load_s, self._session, url=params["url"])
        if done.get("errorText"):
            raise WebDriverException(str(done["errorText"]))
        self._browser.wait_for("Page.loadEventFired", self._page_load_s)

    def _run(self, script: str, arguments: list[Any]) -> Any:
        try:
            return self._run_in_world(script, arguments)
        except (TimeoutException, JavascriptException):
            raise
        except WebDriverException as error:
            if "context" not in str(error.msg):
                raise
            self._world = None  # the page has gone elsewhere meanwhile
            return self._run_in_world(script, arguments)

    def _run_in_world(self, script: str, arguments: list[Any]) -> Any:
        call = self._browser.call
        if self._world is None:
            frame = call("Page.getFrameTree", self._script_s, self._session)["frameTree"]["frame"]["id"]
            world = call("Page.createIsolatedWorld", self._script_s, self._session, frameId=frame)
            self._world = int(world["executionContextId"])
        done = call(
            "Runtime.callFunctionOn", self._script_s, self._session, functionDeclaration=f"function() {{ {script} }}",
            executionContextId=self._world, arguments=[{"value": value} for value in arguments], returnByValue=True,
        )  # fmt: skip
        if "exceptionDetails" in done:
            raise JavascriptException(str(done["exceptionDetails"].get("text", "a script failed"))[:500])
        return done.get("result", {}).get("value")
