//! Refusals as gRPC status and back: the one table of codes. Pure.
//!
//! | reason | gRPC code | exit code of the command line |
//! |---|---|---|
//! | not_found | NOT_FOUND | 3 |
//! | exists | ALREADY_EXISTS | 1 |
//! | conflict, stale, fleet | FAILED_PRECONDITION | 1 |
//! | ambiguous | FAILED_PRECONDITION | 1 |
//! | invalid | INVALID_ARGUMENT | 2 |
//! | guarded | FAILED_PRECONDITION | 4 |
//! | exhausted | RESOURCE_EXHAUSTED | 1 |
//! | ticket_* | UNAUTHENTICATED | 1 |
//! | no_leader, no_quorum | UNAVAILABLE | 5 |
//! | timeout | DEADLINE_EXCEEDED | 6 |
//! | not_ready | UNAVAILABLE | 1 |
//! | forbidden | PERMISSION_DENIED | 1 |

use prost::Message as _;
use raft_store::apply::{RejectCode, Rejection};
use raft_store::raft::{ProposeError, ReadError};
use tonic::{Code, Status};

use crate::daemon::CallError;
use crate::proto::ErrorDetail;

/// Builds a status with its detail.
pub fn status(code: Code, detail: ErrorDetail) -> Status {
    let message = format!("{}: {}", detail.what, detail.why);
    Status::with_details(code, message, detail.encode_to_vec().into())
}

/// Builds a detail.
pub fn detail(
    reason: &str,
    what: impl Into<String>,
    why: impl Into<String>,
    next: impl Into<String>,
) -> ErrorDetail {
    ErrorDetail { what: what.into(), why: why.into(), next: next.into(), reason: reason.into() }
}

/// Refuses a malformed request.
pub fn invalid(what: impl Into<String>, why: impl Into<String>) -> Status {
    status(Code::InvalidArgument, detail("invalid", what, why, "see the command's --help"))
}

/// Refuses a name that is not known.
pub fn not_found(what: &str, name: &str, known: &[String]) -> Status {
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let detail = detail(
        "not_found",
        format!("{what} {name} was not found"),
        format!("there is no {what} of this name"),
        format!("known {what}s: {known}"),
    );
    status(Code::NotFound, detail)
}

fn reason(code: RejectCode) -> (&'static str, Code) {
    match code {
        RejectCode::NotFound => ("not_found", Code::NotFound),
        RejectCode::Exists => ("exists", Code::AlreadyExists),
        RejectCode::Conflict => ("conflict", Code::FailedPrecondition),
        RejectCode::Ambiguous => ("ambiguous", Code::FailedPrecondition),
        RejectCode::Invalid => ("invalid", Code::InvalidArgument),
        RejectCode::Guarded => ("guarded", Code::FailedPrecondition),
        RejectCode::Exhausted => ("exhausted", Code::ResourceExhausted),
        RejectCode::Stale => ("stale", Code::FailedPrecondition),
        RejectCode::TicketUnknown => ("ticket_unknown", Code::Unauthenticated),
        RejectCode::TicketUsed => ("ticket_used", Code::Unauthenticated),
        RejectCode::TicketExpired => ("ticket_expired", Code::Unauthenticated),
        RejectCode::TicketRevoked => ("ticket_revoked", Code::Unauthenticated),
        RejectCode::Fleet => ("fleet", Code::FailedPrecondition),
    }
}

/// Turns a refusal of the state machine into a status.
pub fn from_rejection(r: Rejection) -> Status {
    let (reason, code) = reason(r.code);
    status(code, detail(reason, r.what, r.why, r.next))
}

/// Turns any failure into a status. Without a leader or a quorum it says which voters there are.
pub fn from_call(e: CallError) -> Status {
    const WAIT: &str = "bring a majority of the voters back; the overlay keeps running, and `skein status` shows who is missing";
    let down = |reason: &str, what: &str, why: String| {
        status(Code::Unavailable, detail(reason, what, why, WAIT))
    };
    let timed_out = |why: String| {
        let next = "run the same command again: a repeated request is carried out once";
        status(
            Code::DeadlineExceeded,
            detail("timeout", "the call was not answered in time", why, next),
        )
    };
    const WRITE: &str = "the change was not committed";
    const READ: &str = "the state could not be confirmed (add --stale to see what this node knows)";
    match e {
        CallError::Rejected(r) => from_rejection(r),
        CallError::NotReady(why) => {
            let next = "look at `skein status` on this machine and try again";
            status(
                Code::Unavailable,
                detail("not_ready", "this node cannot serve the call", why, next),
            )
        }
        CallError::Unavailable { reason, write, why } => {
            down(reason, if write { WRITE } else { READ }, why)
        }
        CallError::Propose(e @ ProposeError::NoQuorum { .. }) => {
            down("no_quorum", WRITE, e.to_string())
        }
        CallError::Propose(e @ (ProposeError::NoLeader { .. } | ProposeError::NotLeader)) => {
            down("no_leader", WRITE, e.to_string())
        }
        CallError::Propose(e @ ProposeError::Timeout(_)) => timed_out(e.to_string()),
        CallError::Propose(e @ (ProposeError::Stopped(_) | ProposeError::Refused(_))) => {
            let next = "restart the daemon on this machine, or ask another node";
            status(Code::Internal, detail("stopped", WRITE, e.to_string(), next))
        }
        CallError::Read(e @ ReadError::NoQuorum { .. }) => down("no_quorum", READ, e.to_string()),
        CallError::Read(e @ ReadError::NoLeader { .. }) => down("no_leader", READ, e.to_string()),
        CallError::Read(e @ ReadError::Timeout(_)) => timed_out(e.to_string()),
    }
}

/// Reads the detail of a status; a status of somebody else gets one from its code and message.
pub fn read_detail(s: &Status) -> ErrorDetail {
    let ours = ErrorDetail::decode(s.details()).ok().filter(|d| !d.what.is_empty());
    ours.unwrap_or_else(|| {
        let next = "see whether the daemon runs there: skein status";
        detail("transport", "the call failed", format!("{:?}: {}", s.code(), s.message()), next)
    })
}

/// Returns the command line's exit code for a failure.
pub fn exit_code(d: &ErrorDetail) -> u8 {
    match d.reason.as_str() {
        "invalid" => 2,
        "not_found" => 3,
        "guarded" => 4,
        "no_leader" | "no_quorum" => 5,
        "timeout" => 6,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_wire() {
        let r = Rejection::new(RejectCode::Guarded, "a", "b", "c");
        let s = from_rejection(r);
        let d = read_detail(&s);
        assert_eq!((d.what.as_str(), d.why.as_str(), d.next.as_str()), ("a", "b", "c"));
        assert_eq!(exit_code(&d), 4);
        let foreign = read_detail(&Status::unknown("x"));
        assert_eq!(foreign.reason, "transport");
    }
}
