"""What the environment says of proxies, kept from breaking an app on this machine.

A company's or a desktop's `http_proxy` catches requests to 127.0.0.1 too, with which Gradio asks itself
whether it is up, and a proxy of a kind that httpx cannot use (`socks://`) stops the import of Gradio.
"""

import os
from urllib.request import getproxies

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def settle_proxies(host: str) -> list[str]:
    """Let requests to this machine and to `host` go there directly, and take out of the environment the
    proxies that cannot be used; returns those."""
    import httpx

    proxies = getproxies()  # of the environment, in upper or lower case, or else of the system
    unusable = []
    for scheme in proxies.keys() & {"http", "https", "all"}:
        value = proxies[scheme]
        try:
            httpx.Client(proxy=value if "://" in value else f"http://{value}").close()
            os.environ[f"{scheme}_proxy"] = value
        except Exception:  # an unknown scheme, a missing package, no address
            unusable.append(value)
            for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper()):
                os.environ.pop(name, None)
    if proxies:
        direct = [*filter(None, proxies.get("no", "").split(",")), *LOOPBACK, host.strip("[]")]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(direct))
    return sorted(set(unusable))
