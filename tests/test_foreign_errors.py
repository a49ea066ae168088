"""Errors of Spark and other libraries: classes, conditions and advice are shown, values are not."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import pytest
from pyspark.errors import PySparkTypeError
from pyspark.errors.exceptions.base import PySparkException

from lam_spark.errors import without_values
from lam_spark.foreign_errors import _ADVICE

RAW_ID = "RAW-CUSTOMER-000123"
SPARK = "org.apache.spark.SparkException"
PYTHON = "org.apache.spark.api.python.PythonException"
WORKER_LOST = (
    "Job aborted due to stage failure: Task 0 in stage 1.0 failed 4 times, most recent failure: Lost task 0.3 in "
    "stage 1.0 (TID 7) (10.0.0.2 executor 1): ExecutorLostFailure (executor 1 exited caused by one of the running "
    "tasks) Reason: "
)
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/spark/python/pyspark/worker.py", line 1234, in main\n'
    "    process()\n"
    "    ^^^^^^^^^\n"
)


class Throwable:
    """A Java exception as py4j shows it: methods, of which some are missing."""

    def __init__(
        self,
        java_class: str,
        message: str | None = None,
        cause: Throwable | None = None,
        condition: str | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self.java_class, self.message, self.cause = java_class, message, cause
        if condition is not None:
            self.getCondition = lambda: condition
            self.getMessageParameters = lambda: dict(parameters or {})

    def getClass(self) -> Throwable:  # noqa: N802
        return self

    def getName(self) -> str:  # noqa: N802
        return self.java_class

    def getMessage(self) -> str | None:  # noqa: N802
        return self.message

    def getCause(self) -> Throwable | None:  # noqa: N802
        return self.cause


class Py4JJavaError(Exception):
    """The error for a Java exception that PySpark does not translate."""

    def __init__(self, java_exception: Any) -> None:
        super().__init__("An error occurred while calling o42.save")
        self.java_exception = java_exception


class Captured(PySparkException):
    """A Java exception that PySpark translated; subclasses have the names of PySpark's classes."""

    def __init__(self, origin: Throwable | None, text: str = "", **more: Any) -> None:
        super().__init__(message=text, **more)
        self._origin = origin


def captured(name: str, origin: Throwable) -> Captured:
    """The translated exception of this class of PySpark, with the condition of the Java exception."""
    kind: type[Captured] = type(name, (Captured,), {})
    condition = origin.getCondition() if hasattr(origin, "getCondition") else None
    parameters = origin.getMessageParameters() if condition else None
    return kind(origin, str(origin.message), errorClass=condition, messageParameters=parameters)


def failed_cast() -> Throwable:
    return Throwable(
        "org.apache.spark.SparkNumberFormatException",
        f'[CAST_INVALID_INPUT] The value \'{RAW_ID}\' of the type "STRING" cannot be cast to "DOUBLE"',
        condition="CAST_INVALID_INPUT",
        parameters={
            "expression": f"'{RAW_ID}'",
            "sourceType": '"STRING"',
            "targetType": '"DOUBLE"',
            "ansiConfig": '"spark.sql.ansi.enabled"',
        },
    )


def test_a_value_that_cannot_be_cast_is_not_shown() -> None:
    error = captured("NumberFormatException", failed_cast())
    assert without_values(error) == (
        "NumberFormatException [CAST_INVALID_INPUT] (sourceType: STRING, targetType: DOUBLE)"
    )


def test_the_java_classes_of_the_causes_are_shown_without_their_messages() -> None:
    error = Py4JJavaError(Throwable(SPARK, f"row {RAW_ID}", Throwable("java.io.EOFException", RAW_ID)))
    assert without_values(error) == "Py4JJavaError: SparkException: java.io.EOFException"


def test_each_cause_has_its_condition_and_the_path_it_names() -> None:
    read = Throwable(
        SPARK,
        condition="FAILED_READ_FILE.NO_HINT",
        parameters={"path": "file:///data/raw/sales.csv.gz"},
        cause=Throwable("java.io.IOException"),
    )
    assert without_values(Py4JJavaError(Throwable(SPARK, "Job aborted", read))) == (
        "Py4JJavaError: SparkException [FAILED_READ_FILE.NO_HINT] (path: file:///data/raw/sales.csv.gz): "
        "java.io.IOException"
    )


def test_another_java_class_than_that_of_the_translated_error_is_shown() -> None:
    origin = Throwable("com.example.StrangeValueException", RAW_ID)
    assert without_values(captured("IllegalArgumentException", origin)) == (
        "IllegalArgumentException: com.example.StrangeValueException"
    )


def test_an_unknown_error_shows_its_class_only() -> None:
    assert without_values(ValueError(f"bad row {RAW_ID}")) == "ValueError"


def test_an_unknown_condition_is_shown_without_parameters() -> None:
    error = PySparkException(f"row {RAW_ID}", "NEVER_SEEN", {"surprise": RAW_ID})
    assert without_values(error) == "PySparkException [NEVER_SEEN]"


def test_an_error_of_pyspark_itself_shows_its_argument() -> None:
    error = PySparkTypeError(
        errorClass="NOT_COLUMN_OR_STR", messageParameters={"arg_name": "col", "arg_type": "float"}
    )
    assert without_values(error) == "PySparkTypeError [NOT_COLUMN_OR_STR] (arg_name: col, arg_type: float)"


def test_causes_in_python_are_shown() -> None:
    error = RuntimeError(RAW_ID)
    error.__cause__ = KeyError(RAW_ID)
    assert without_values(error) == "RuntimeError: KeyError"


def test_a_chain_of_causes_that_does_not_end_is_cut() -> None:
    endless = Throwable("com.example.Endless")
    endless.cause = endless
    assert without_values(Py4JJavaError(endless)) == "Py4JJavaError: com.example.Endless"


def test_a_jvm_that_does_not_answer_leaves_the_class() -> None:
    class Gone(Throwable):
        def getClass(self) -> Throwable:  # noqa: N802
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    class UnreachableError(Py4JJavaError):
        def __str__(self) -> str:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    assert without_values(UnreachableError(Gone(SPARK))) == "UnreachableError"


@pytest.mark.parametrize(
    ("parameter", "value", "shown"),
    [
        ("path", "s3a://bucket/raw/day=2024-05-01/a.parquet", "s3a://bucket/raw/day=2024-05-01/a.parquet"),
        ("path", f"/raw/customer={RAW_ID}/part-0.csv", "/raw/customer=***/part-0.csv"),
        ("path", "s3a://user:hush@bucket/raw", "s3a://user:***@bucket/raw"),
        ("columnName", "`first name`", "first name"),
        ("objectName", "`events`.`amount`", "events.amount"),
        ("column", "[day]", "[day]"),
        ("optionName", "mode", "mode"),
        ("confName", "spark.sql.shuffle.partitions", "spark.sql.shuffle.partitions"),
        ("provider", "com.example.Source", "com.example.Source"),
        ("dataType", '"ARRAY<DECIMAL(10, 2)>"', "ARRAY<DECIMAL(10, 2)>"),
    ],
)
def test_a_parameter_that_names_something_is_shown(parameter: str, value: str, shown: str) -> None:
    error = PySparkException("text", "CONDITION", {parameter: value})
    assert without_values(error) == f"PySparkException [CONDITION] ({parameter}: {shown})"


@pytest.mark.parametrize(
    "parameter",
    # Names of columns that Spark found may come from the data, too: a CSV file without header.
    ["expression", "value", "key", "sqlExpr", "statement", "badRecord", "message", "reason", "proposal",
     "columns", "schema", "fieldName", "fieldValue", "charset", "timeZone", "url"],
)  # fmt: skip
def test_a_parameter_that_can_hold_data_is_hidden(parameter: str) -> None:
    error = PySparkException("text", "CONDITION", {parameter: "C123"})
    assert without_values(error) == "PySparkException [CONDITION]"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("columnName", f"CAST('{RAW_ID}' AS INT)"),
        ("objectName", "name\nof two lines"),
        ("path", RAW_ID),
        ("dataType", f'"STRUCT<{RAW_ID}: INT>"'),
    ],
)
def test_a_parameter_without_the_form_of_its_name_is_hidden(parameter: str, value: str) -> None:
    error = PySparkException("text", "CONDITION", {parameter: value})
    assert without_values(error) == "PySparkException [CONDITION]"


@pytest.mark.parametrize("name", ["PythonException", "Py4JJavaError"])
def test_of_a_python_worker_only_the_class_of_the_last_exception_is_shown(name: str) -> None:
    text = (
        f"{TRACEBACK}KeyError: '{RAW_ID}'\n\n"
        f"During handling of the above exception, another exception occurred:\n\n"
        f"{TRACEBACK}lam.errors.RowError: {RAW_ID}\n{RAW_ID}: in line 2\n"
    )
    if name == "PythonException":
        error: Exception = type(name, (Captured,), {})(None, f"An exception was thrown.\n{text}")
        assert without_values(error) == "PythonException: lam.errors.RowError"
    else:
        error = Py4JJavaError(Throwable(SPARK, "Job aborted", Throwable(PYTHON, text)))
        assert without_values(error) == "Py4JJavaError: SparkException: PythonException: lam.errors.RowError"


def test_a_module_that_is_missing_in_a_python_worker_is_named() -> None:
    text = f"{TRACEBACK}ModuleNotFoundError: No module named 'lam_spark.scoring'\n"
    assert without_values(Py4JJavaError(Throwable(PYTHON, text))) == (
        "Py4JJavaError: PythonException: ModuleNotFoundError. The Python module lam_spark.scoring is missing: install "
        "lam_spark with its requirements on the driver and on every executor"
    )


def test_an_error_of_a_file_shows_its_number_and_its_path() -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/raw/sales.csv")
    assert without_values(error) == "FileNotFoundError [ENOENT] (path: /data/raw/sales.csv)"


# Java class and message of the last cause -> how the advice begins. The messages are those of the libraries.
COMMON = [
    ("java.lang.ClassNotFoundException", "org.apache.spark.sql.delta.catalog.DeltaCatalog", "Delta is not"),
    ("java.lang.NoClassDefFoundError", "io/delta/storage/LogStore", "Delta is not"),
    (
        SPARK,
        "Cannot find catalog plugin class for catalog 'spark_catalog': "
        "org.apache.spark.sql.delta.catalog.DeltaCatalog.",
        "Delta is not",
    ),
    (
        "org.apache.spark.SparkClassNotFoundException",
        "[DATA_SOURCE_NOT_FOUND] Failed to find the data source: delta. Make sure the provider name is correct",
        "Delta is not",
    ),
    ("java.nio.file.AccessDeniedException", "/data/tables/events", "Access to a file or folder is denied"),
    (
        "org.apache.hadoop.security.AccessControlException",
        "Permission denied: user=lam, access=WRITE",
        "Access to a",
    ),
    ("java.io.FileNotFoundException", "/data/raw/sales.csv (Permission denied)", "Access to a file or"),
    ("java.io.IOException", "No space left on device", "A disk is full"),
    (
        SPARK,
        WORKER_LOST + "Container killed by YARN for exceeding physical memory limits. 5.5 GB of 5.5 GB used.",
        "An executor needed more memory",
    ),
    (
        SPARK,
        WORKER_LOST + "The executor with id 1 exited with exit code 137(SIGKILL, possible container OOM).",
        "An executor needed more memory",
    ),
    (SPARK, WORKER_LOST + "Remote RPC client disassociated.", "An executor was lost"),
    (
        "org.apache.spark.shuffle.MetadataFetchFailedException",
        "Missing an output location",
        "An executor was lost",
    ),
    ("java.lang.OutOfMemoryError", "Java heap space", "A JVM ran out of memory"),
    (SPARK, "Python worker exited unexpectedly (crashed)", "A Python worker of Spark died"),
    (PYTHON, f"{TRACEBACK}ModuleNotFoundError: No module named 'pyarrow'", "The Python module"),
    (SPARK, "Answer from Java side is empty", "The driver's JVM ended"),
    (
        "java.lang.RuntimeException",
        "Unable to instantiate org.apache.hadoop.hive.ql.metadata.SessionHiveMetaStoreClient",
        "The Hive metastore does not answer",
    ),
    ("java.io.EOFException", "Unexpected end of input stream", "A compressed file is cut off or damaged"),
    (
        "java.nio.charset.UnsupportedCharsetException",
        "utf-99",
        "A charset is unknown",
    ),
    (
        "org.apache.spark.SparkIllegalArgumentException",
        "[CODEC_SHORT_NAME_NOT_FOUND] Cannot find a short name for the codec zip.",
        "A compression codec is unknown",
    ),
    (
        "org.apache.spark.SparkClassNotFoundException",
        "[DATA_SOURCE_NOT_FOUND] Failed to find the data source: excel. Make sure the provider name is correct",
        "No data source for this format",
    ),
]


@pytest.mark.parametrize(("java_class", "message", "advice"), COMMON)
def test_a_common_cause_comes_with_what_to_do(java_class: str, message: str, advice: str) -> None:
    shown = without_values(Py4JJavaError(Throwable(SPARK, "Job aborted", Throwable(java_class, message))))
    assert f". {advice}" in shown
    assert message not in shown


def test_every_advice_is_among_the_common_causes() -> None:
    begins = tuple(advice for *_, advice in COMMON)
    assert [advice for _, advice in _ADVICE if not advice.startswith(begins)] == []


def test_a_crashed_python_worker_is_not_taken_for_a_damaged_file() -> None:
    """Spark gives a crashed worker an EOFException as its cause, as a file that is cut off has one."""
    error = Py4JJavaError(
        Throwable(
            SPARK, "Python worker exited unexpectedly (crashed)", Throwable("java.io.EOFException", None)
        )
    )
    assert without_values(error).startswith(
        "Py4JJavaError: SparkException: java.io.EOFException. A Python worker of Spark died"
    )


def test_frames_of_a_stack_trace_are_no_cause() -> None:
    error = RuntimeError(
        "failed\n\tat org.apache.thrift.transport.TTransportException.toString(Socket.java:1)\n"
    )
    assert without_values(error) == "RuntimeError"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "[EACCES] (path: /data). Access to a"),
        (OSError(errno.ENOSPC, "No space left on device"), "OSError [ENOSPC]. A disk is full"),
        (ModuleNotFoundError("No module named 'horovod'"), "The Python module horovod is missing"),
    ],
)
def test_common_causes_in_python_come_with_what_to_do(error: Exception, shown: str) -> None:
    assert shown in without_values(error)


def test_a_jvm_that_ended_comes_with_what_to_do() -> None:
    error = type("Py4JNetworkError", (Exception,), {})("Answer from Java side is empty")
    assert without_values(error).startswith("Py4JNetworkError. The driver's JVM ended")
