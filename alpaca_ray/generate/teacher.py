"""Which teacher a run asks, and whether it can be asked at all. Nothing here knows Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from alpaca_ray.errors import SettingsError, TeacherError
from alpaca_ray.models import EMBEDDED
from alpaca_ray.settings.generate import GenerateSettings

OPENAI_URL = "https://api.openai.com/v1"
BASE_URL_ENV = "OPENAI_BASE_URL"
_SUCCESSORS = "gpt-3.5-turbo-instruct (completions) or gpt-4o-mini (chat)"
# Text models that OpenAI has shut down; the originals' documentation names the first.
_GONE = frozenset(
    [f"text-{name}" for name in ("davinci-003", "davinci-002", "davinci-001", "curie-001", "babbage-001", "ada-001")]
    + [f"code-{name}" for name in ("davinci-002", "davinci-001", "cushman-002", "cushman-001")]
    + ["davinci", "curie", "babbage", "ada", "davinci-instruct-beta", "curie-instruct-beta"]
    + ["gpt-3.5-turbo-0301", "gpt-3.5-turbo-0613"]
)
_COMPLETION_MODELS = ("gpt-3.5-turbo-instruct", "davinci-002", "babbage-002")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class Teacher:
    """An endpoint and what to ask of it.

    Attributes:
        base_url: OpenAI-compatible, without a slash at its end; empty for the local teacher until it is started.
        model: empty where the endpoint's first model is meant.
        key_env: variable that holds the key.
        local: this run starts the teacher itself.
        weight: its share of the requests, beside other endpoints'.
    """

    base_url: str
    model: str
    api: Literal["completions", "chat"]
    key_env: str
    local: bool = False
    weight: float = 1.0

    @property
    def loopback(self) -> bool:
        """Whether the endpoint is on this machine."""
        return (urlsplit(self.base_url).hostname or "") in _LOOPBACK

    @property
    def identity(self) -> str:
        """The endpoint as a run remembers it. A server on this machine is the same one on another port."""
        if self.local:
            return EMBEDDED
        return f"http://{urlsplit(self.base_url).hostname}" if self.loopback else self.base_url

    def key(self, environ: Mapping[str, str]) -> str:
        """Return the key to send; ``none`` where an endpoint other than OpenAI needs none."""
        return (environ.get(self.key_env) or "").strip() or "none"

    def client_options(self, environ: Mapping[str, str]) -> dict[str, Any]:
        """Return what the openai package's clients need. Retries are ours, so theirs are off."""
        return {"base_url": self.base_url, "api_key": self.key(environ), "max_retries": 0}


def choose_teachers(settings: GenerateSettings, environ: Mapping[str, str]) -> list[Teacher]:
    """Decide which endpoints, model and API a run uses, without asking anyone.

    Raises:
        SettingsError: an address is none, the model no longer exists.
        TeacherError: OpenAI is meant and the key's variable is not set.
    """
    if settings.endpoints:
        return [_from_words(given, settings, environ) for given in settings.endpoints]
    url, model = settings.base_url, settings.model_name or ""
    if url is None and model in ("", EMBEDDED):
        return [Teacher("", EMBEDDED, _api(settings, "", model), settings.api_key_env, local=True)]
    flag = "--base_url"
    if url is None:
        url, flag = environ.get(BASE_URL_ENV) or OPENAI_URL, f"${BASE_URL_ENV}"
    return [_checked(url, flag, model, settings.api_key_env, settings, environ)]


def recorded_teachers(settings: Mapping[str, Any], key_env: str) -> list[Teacher]:
    """Return a teacher for each model that a journal's settings name, for a run that asks them nothing."""
    urls = str(settings.get("base_url")).split(", ")
    url = next(filter(is_openai, urls), urls[0])  # a journal does not say which model was whose; prices are OpenAI's
    api = str(settings.get("api", "chat")).split(", ")[0]
    return [
        Teacher(url, model, "completions" if api == "completions" else "chat", key_env)
        for model in str(settings.get("model_name")).split(", ")
    ]


def _from_words(given: str, settings: GenerateSettings, environ: Mapping[str, str]) -> Teacher:
    """Return the endpoint that one of ``--endpoints`` describes: an address, then ``name=value`` pairs."""
    url, *pairs = given.split() or [""]
    options = dict(pair.partition("=")[::2] for pair in pairs)
    unknown = sorted(set(options) - {"weight", "key", "model"})
    if unknown:
        raise SettingsError(f"--endpoints {given!r}: unknown {unknown[0]!r}: give weight=, key= or model=")
    empty = [pair for pair in pairs if not pair.partition("=")[2] and not pair.startswith("weight")]
    if empty:
        raise SettingsError(f"--endpoints {given!r}: {empty[0]!r} names no value")
    try:
        weight = float(options.get("weight", 1))
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise SettingsError(f"--endpoints {given!r}: weight must be a number above 0")
    model = options.get("model") or settings.model_name or ""
    teacher = _checked(url, "--endpoints", model, options.get("key") or settings.api_key_env, settings, environ)
    return replace(teacher, weight=weight)


def _checked(
    url: str, flag: str, model: str, key_env: str, settings: GenerateSettings, environ: Mapping[str, str]
) -> Teacher:
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # brackets that do not close, a port that is no number
        valid = False
    if not valid:
        raise SettingsError(f"{flag} {url!r}: must be an address such as http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise SettingsError(
            f"{flag} at {parts.hostname}: must hold no user name or password: put the key into the environment "
            f"variable {key_env} (--api_key_env)"
        )
    key = (environ.get(key_env) or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise TeacherError(f"the environment variable {key_env} holds characters that no key has: set it anew")
    if is_openai(url):
        if model in _GONE:
            raise SettingsError(
                f"--model_name {model}: OpenAI has shut it down; use {_SUCCESSORS}, or another endpoint"
            )
        if not model:
            raise SettingsError(f"--model_name is required with {url}")
        if not environ.get(key_env):
            raise TeacherError(
                f"{url} needs a key, and the environment variable {key_env} is not set: set it, or name another "
                "variable with --api_key_env"
            )
    return Teacher(url, model, _api(settings, url, model), key_env)


def is_openai(url: str) -> bool:
    """Whether an address is OpenAI's own."""
    host = urlsplit(url).hostname or ""
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def probe(teacher: Teacher, environ: Mapping[str, str]) -> Teacher:
    """Ask the endpoint for its models; return the teacher with its model named.

    This costs no token, and finds a wrong address or key before anything is written. An endpoint that offers no list
    is believed.

    Raises:
        TeacherError: nobody answers, the key is refused, or no model is named and the endpoint names none.
    """
    import openai

    with openai.OpenAI(
        **teacher.client_options(environ), timeout=_PROBE_SECONDS, http_client=http_client(teacher, openai, "Default")
    ) as client:
        try:
            models = [model.id for model in client.models.list()]
        except openai.APIConnectionError as error:
            raise TeacherError(f"the teacher at {teacher.base_url} cannot be reached: {reason(error)}") from error
        except openai.AuthenticationError as error:
            raise fatal(teacher, error) from error
        except openai.PermissionDeniedError as error:  # a key may be allowed to ask a model, and not to list them
            if not teacher.model:
                raise fatal(teacher, error) from error
            models = []
        except (openai.APIError, ValueError, TypeError, AttributeError):
            models = []  # no list, or none in OpenAI's form: the first request will tell
    if teacher.model:
        return teacher
    if not models:
        raise TeacherError(
            f"the teacher at {teacher.base_url} lists no models: name one with "
            "--model_name, or mend the address, which mostly ends in /v1"
        )
    return replace(teacher, model=models[0])


def http_client(teacher: Teacher, openai: Any, kind: Literal["Default", "DefaultAio"]) -> Any:
    """Return an HTTP client for the openai package; proxies are left aside where the endpoint is on this machine."""
    name = "DefaultHttpxClient" if kind == "Default" else "DefaultAioHttpClient"
    return getattr(openai, name)(trust_env=not teacher.loopback)


def fatal(teacher: Teacher, error: Any) -> TeacherError:
    """Return the error that stops a run, with the address and the server's own words."""
    hint = ""
    if error.status_code in (401, 403):
        hint = f" (the key is read from ${teacher.key_env})"
    elif "unsupported" in str(getattr(error, "code", "")) or "unsupported" in words(error).lower():
        hint = " (see --drop_params, which leaves a parameter out)"
    elif error.status_code == 404:
        hint = (
            f" (asked for model {teacher.model!r} through the {teacher.api} API: see --model_name, --base_url, --api)"
        )
    return TeacherError(
        f"the teacher at {teacher.base_url} refuses with status {error.status_code}: {words(error)}{hint}"
    )


def words(error: Any) -> str:
    """Return a server's own message from an error of the openai package."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    text = body if isinstance(body, str) and body.strip() else str(error)
    return " ".join(text.split())[:500]


def reason(error: BaseException) -> str:
    """Return the innermost words of a connection error, such as ``Connection refused``."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return str(error) or type(error).__name__


def _api(settings: GenerateSettings, url: str, model: str) -> Literal["completions", "chat"]:
    if settings.api != "auto":
        return settings.api
    if settings.response_format == "json_schema":
        return "chat"
    return "chat" if is_openai(url) and not model.startswith(_COMPLETION_MODELS) else "completions"
