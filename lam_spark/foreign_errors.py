"""What may be shown of an error of Spark or another library: never its text, which may quote a customer's row.

* The classes of the error and of its causes, in Python and in the JVM, and Spark's error conditions are shown.
* Message parameters are shown if their name is on a list and their value has the form that the name promises.
* The text is only searched: a few common causes get a sentence that says what to do.

Imports no pyspark: errors of Spark are recognised by their attributes, so that the command line answers without it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lam_spark.masking import MASK

_PATH = re.compile(r"[^\n'\"`]{0,500}/[^\n'\"`]{0,500}")
_NAME = re.compile(r"\[?[\w.,$ -]{1,200}\]?")
# Without a colon: the names of a struct's fields may come from the data.
_TYPE = re.compile(r"[\w<>(), ]{1,200}")
# Message parameters of the error conditions of Spark, PySpark and Delta (error-conditions.json,
# delta-error-classes.json). Some that sound harmless can hold data and are left out:
# - proposal, columns, schema: of a CSV file without header they are its first row
# - fieldName: may be a key of a JSON object
# - charset, timeZone: arguments of functions, which may come from a column
# - message, reason, statement, url: texts with anything in them
_SHOWN: dict[str, re.Pattern[str]] = {
    **dict.fromkeys(["path", "paths", "filePath", "outputPath", "tablePath", "logPath", "location"], _PATH),
    **dict.fromkeys(["sourcePath", "targetPath", "checkpointPath"], _PATH),
    **dict.fromkeys(["objectName", "columnName", "colName", "column", "columnPath"], _NAME),
    **dict.fromkeys(["relationName", "tableName", "viewName", "catalogName", "functionName"], _NAME),
    **dict.fromkeys(["routineName", "parameter", "arg_name", "arg_type", "package_name"], _NAME),
    **dict.fromkeys(["option", "optionName", "options", "confName", "configKey", "configName"], _NAME),
    **dict.fromkeys(["format", "provider", "codecName", "availableCodecs", "charsets"], _NAME),
    **dict.fromkeys(["className", "pluginClassName", "providerClass"], _NAME),
    **dict.fromkeys(
        ["sourceType", "targetType", "expectedType", "actualType", "columnType", "dataType"], _TYPE
    ),
}
# `customer=17` in the path of a file is a value; `day=2024-05-01` stays.
_PARTITION = re.compile(r"(^|/)([^/=]+)=(?!\d{4}-\d\d(?:-\d\d)?(?:/|$))[^/]+")

# Pattern of the text -> what to do; the first that fits counts.
_ADVICE = (
    (
        r"(?:ClassNotFoundException|NoClassDefFoundError|catalog plugin class for catalog '\w+'): "
        r"(?:io[./]delta|org[./]apache[./]spark[./]sql[./]delta)|Failed to find (?:the )?data source: delta\b",
        "Delta is not on the class path of the Spark session: start it with the package "
        "io.delta:delta-spark_2.13, in the version that the README names",
    ),
    (
        r"(?m)^ModuleNotFoundError: No module named '(?P<module>[\w.]+)'",
        "The Python module {module} is missing: install lam_spark with its requirements on the driver and on "
        "every executor",
    ),
    (
        r"AccessDeniedException|AccessControlException|PermissionError|Permission denied",
        "Access to a file or folder is denied: the user of the driver and of the executors must be able to read "
        "the inputs and to write below root",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "A disk is full: free space below root and in the folder of spark.local.dir, which holds Spark's shuffle "
        "files",
    ),
    (
        r"Container killed by|OOMKilled|beyond the '?(?:PHYSICAL|VIRTUAL)'? memory|"
        r"exit(?:ed with)?(?: exit)? (?:code|status):? 137",
        "An executor needed more memory than its container has: raise spark.executor.memoryOverhead, or lower "
        "spark.executor.cores",
    ),
    (
        r"java\.lang\.OutOfMemoryError|SparkOutOfMemoryError|Java heap space|GC overhead limit exceeded",
        "A JVM ran out of memory: raise spark.driver_memory of the configuration, on a cluster "
        "spark.driver.memory and spark.executor.memory",
    ),
    (
        r"Python worker exited unexpectedly|Python worker failed to connect back",
        "A Python worker of Spark died, most often for lack of memory: use fewer cores per machine, or raise "
        "spark.executor.memoryOverhead",
    ),
    (
        r"ExecutorLostFailure|Executor heartbeat timed out|Remote RPC client disassociated|"
        r"FetchFailedException",
        "An executor was lost: its log on the cluster has the reason; run the stage again, with more "
        "spark.executor.memory if that was too little",
    ),
    (
        r"TTransportException|Could not connect to meta ?store|Unable to instantiate \S*MetaStoreClient",
        "The Hive metastore does not answer: check spark.hadoop.hive.metastore.uris and the network between it "
        "and the driver",
    ),
    (
        r"Unexpected end of (?:ZLIB )?input stream|not a gzip file|incorrect (?:header|data) check|"
        r"ended before the end-of-stream marker",
        "A compressed file is cut off or damaged: replace it by a complete copy",
    ),
    (
        r"INVALID_PARAMETER_VALUE\.CHARSET|UnsupportedCharsetException|IllegalCharsetNameException|"
        r"UnsupportedEncodingException|LookupError: unknown encoding",
        "A charset is unknown: set the option encoding of the input to one that Spark has, such as UTF-8 or "
        "ISO-8859-1",
    ),
    (
        r"CODEC_NOT_AVAILABLE|CODEC_SHORT_NAME_NOT_FOUND|Codec \[\S+\] is not available",
        "A compression codec is unknown: name one that Spark has, such as gzip, snappy or zstd",
    ),
    (
        r"DATA_SOURCE_NOT_FOUND|Failed to find (?:the )?data source",
        "No data source for this format is on the class path: correct the format, or put its package on the "
        "session (spark.jars.packages)",
    ),
    (
        r"Py4JNetworkError|Answer from Java side is empty",
        "The driver's JVM ended, most often because the machine has too little memory: give it more, or lower "
        "spark.driver_memory",
    ),
)
_STACK_FRAMES = re.compile(r"^\s+(?:at |\.\.\. \d+ more).*\n?", re.MULTILINE)
# The traceback of a Python worker comes as text: indented lines, then the class of the exception.
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+([A-Za-z_][\w.]*)(?=:|\s|$)")
_SPARK_PACKAGE = re.compile(r"^org\.apache\.spark\.(?:[a-z]\w*\.)*")
_MAX_CAUSES = 10


@dataclass(frozen=True)
class _Cause:
    """One error of a chain of causes.

    Attributes:
        name: Class, of Spark's own without package.
        condition: Spark's error condition; None for errors without one.
        parameters: Message parameters that may be shown.
        text: Text, for searches only.
    """

    name: str
    condition: str | None
    parameters: Mapping[str, str]
    text: str

    def __str__(self) -> str:
        condition = f" [{self.condition}]" if self.condition else ""
        parameters = ", ".join(f"{name}: {self.parameters[name]}" for name in sorted(self.parameters))
        return f"{self.name}{condition}{f' ({parameters})' if parameters else ''}"


def describe(error: BaseException) -> str:
    """What may be shown of an error, e.g. `Py4JJavaError: SparkException: java.io.EOFException. A compressed file ...`.

    Cost: some calls to the JVM for an error of Spark. A JVM that does not answer leaves details out and raises nothing.
    """
    causes = list(_causes(error))
    text = _STACK_FRAMES.sub("", "\n".join(cause.text for cause in causes))
    names = [str(cause) for cause in _without_repetition(causes)]
    # Of chained tracebacks the last one has the final exception.
    names += _TRACEBACK.findall(text)[-1:]
    advice = _advice(text)
    return ": ".join(names) + (f". {advice}" if advice else "")


def _advice(text: str) -> str | None:
    """What to do about the cause that an error's text names; None for an unknown one."""
    for pattern, advice in _ADVICE:
        if match := re.search(pattern, text):
            return advice.format(**match.groupdict())
    return None


def _causes(error: BaseException) -> Iterator[_Cause]:
    """The error and its causes: in Python those of `raise ... from`, of an error of Spark those in the JVM."""
    current: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if current is None:
            return
        condition, parameters = _condition(current)
        if isinstance(current, OSError) and type(current).__module__ == "builtins":
            condition = errno.errorcode.get(current.errno or 0)  # ENOSPC
            parameters = _shown({"path": current.filename} if isinstance(current.filename, str) else {})
        name = type(current).__name__
        text = f"{name}: {_result(current, '__str__')}\n{getattr(current, '_stackTrace', '')}"
        yield _Cause(name, condition, parameters, text)
        yield from _causes_in_jvm(current)
        current = current.__cause__


def _causes_in_jvm(error: BaseException) -> Iterator[_Cause]:
    """The Java exception behind an error of Spark, and its causes."""
    throwable = getattr(error, "java_exception", None)
    is_translated = throwable is None
    if is_translated:
        throwable = getattr(error, "_origin", None)
    for number in range(_MAX_CAUSES):
        java_class = _result(_result(throwable, "getClass"), "getName")
        if java_class is None:  # no further cause, or a JVM that does not answer
            return
        name = _SPARK_PACKAGE.sub("", java_class)
        text = f"{java_class}: {_result(throwable, 'getMessage')}"
        if not (is_translated and number == 0):
            yield _Cause(name, *_condition(throwable), text)
        elif not name.endswith(type(error).__name__):
            yield _Cause(name, None, {}, text)  # PySpark's class has the condition
        throwable = _result(throwable, "getCause")


def _condition(error: Any) -> tuple[str | None, dict[str, str]]:
    """Error condition of an exception of PySpark or Java, and the message parameters that may be shown."""
    condition = _result(error, "getCondition")
    if condition is None:
        return None, {}
    return str(condition), _shown(_result(error, "getMessageParameters"))


def _shown(parameters: Any) -> dict[str, str]:
    """Parameters whose name is on the list and whose value has the form of that name."""
    try:
        texts = {str(name): re.sub('["`]', "", str(value)) for name, value in dict(parameters or {}).items()}
    except Exception:  # a map in a JVM that does not answer
        return {}
    return {
        name: _PARTITION.sub(rf"\1\2={MASK}", text) if _SHOWN[name] is _PATH else text
        for name, text in texts.items()
        if name in _SHOWN and _SHOWN[name].fullmatch(text)
    }


def _result(target: Any, method: str) -> Any:
    """Result of a method without arguments; None if there is no such method, or the JVM does not answer."""
    try:
        return getattr(target, method)()
    except Exception:
        return None


def _without_repetition(causes: Iterable[_Cause]) -> Iterator[_Cause]:
    """The causes without those that only wrap one of the same class: `SparkException: SparkException [CONDITION]`."""
    last: _Cause | None = None
    for cause in causes:
        if last is not None and (last.name != cause.name or last.condition not in (None, cause.condition)):
            yield last
        last = cause
    if last is not None:
        yield last
