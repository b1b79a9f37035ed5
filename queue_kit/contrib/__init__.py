"""Parts with tables of their own, each behind an extra. Who uses the queue alone gets no table and no
import of theirs."""
