"""The names of OpenTelemetry's semantic conventions for messaging, as far as `tracing.py` uses them. They are not
stable yet, so they stand here, once. What they have no word for begins with `queue_kit.`.
"""

SYSTEM = "messaging.system"
QUEUE_KIT = "queue_kit"

OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
ENQUEUE, CREATE = "enqueue", "create"
RUN, PROCESS = "run", "process"

DESTINATION = "messaging.destination.name"
MESSAGE_ID = "messaging.message.id"
CLIENT_ID = "messaging.client.id"

ERROR_TYPE = "error.type"
EXCEPTION = "exception"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"

ATTEMPT = "queue_kit.job.attempt"
OUTCOME = "queue_kit.job.outcome"
SPANS_LEFT_OUT = "queue_kit.job.spans_left_out"
ABORTED = "queue_kit.aborted"
