"""A small web on 127.0.0.1 for tests: an image search, picture hosts, TLS with a throwaway CA, and a proxy.

    with Rig(tmp_path, {"cat": Search(results(range(60)), results(range(50, 120)))}) as rig:
        rig.log        # every request that arrived
        rig.context()  # the ScrapeContext that reaches it

Nothing of it is reachable without one of: `Rig.context()` (the injected resolver), `Rig.proxy` (an allow-listing
CONNECT proxy for programs that only know `HTTPS_PROXY`), or `Rig.browser_arguments` (Chromium's host resolver rules).
"""

from rig.authority import Authority
from rig.pictures import picture
from rig.server import SCRIPT, Answer, Request, Rig
from rig.site import Result, Search, results

__all__ = ["SCRIPT", "Answer", "Authority", "Request", "Result", "Rig", "Search", "picture", "results"]
