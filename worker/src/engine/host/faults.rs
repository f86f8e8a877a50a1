//! What a caller is told of a failure.

use comptoir_domain::{job::Cause, name::to_remark};
use comptoir_wire::{
    DETAIL_CHARS_MAX,
    calls::{Fault, FaultCause},
};

use crate::engine::failure::Failure;

/// What a failed run says of the calls in it.
pub fn of(failure: &Failure) -> Fault {
    let cause = match failure.cause() {
        Cause::Client => FaultCause::Caller,
        Cause::Worker | Cause::Operator | Cause::Chain => FaultCause::Worker,
    };
    fault(cause, &failure.to_string())
}

/// A fault whose detail may be what a library or a program said.
pub fn fault(cause: FaultCause, detail: &str) -> Fault {
    Fault {
        cause,
        detail: to_remark(detail, DETAIL_CHARS_MAX),
    }
}
