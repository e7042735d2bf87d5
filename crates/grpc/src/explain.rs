//! Puts `ErrorInfo` on the errors that never reach our handlers: a call that does not exist, a message that is
//! too long or cannot be decoded, a timeout. Everything else carries its own.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use tonic::{Code, Status, body::Body, codegen::http::Response};

use crate::refusal::Refusal;

/// The header that says that an error has details.
const DETAILS_HEADER: &str = "grpc-status-details-bin";

/// Adds details to an error answer that has none.
pub(crate) fn explain(response: Response<Body>) -> Response<Body> {
    if response.headers().contains_key(DETAILS_HEADER) {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => explained(&status).into_status().into_http(),
        Some(_) | None => response,
    }
}

/// What a status made by the transport means in our words.
pub(crate) fn explained(status: &Status) -> Refusal {
    let message = status.message();
    // tonic answers OUT_OF_RANGE and INTERNAL for these; to our clients both mean that the request is wrong.
    let request_is_wrong = match status.code() {
        Code::OutOfRange => message.contains("message length too large"),
        Code::Internal => message.contains("decode") || message.contains("protocol error"),
        _ => false,
    };
    if request_is_wrong {
        return Refusal::invalid(message);
    }
    let (reason, otherwise) = match status.code() {
        Code::Ok => ("OK", ""),
        Code::Cancelled => ("CANCELLED", "the call was cancelled"),
        Code::Unknown => ("UNKNOWN", "the transport failed"),
        Code::InvalidArgument => ("INVALID_REQUEST", "the request cannot be understood"),
        Code::DeadlineExceeded => ("DEADLINE_EXCEEDED", "the deadline of the call has passed"),
        Code::NotFound => ("NOT_FOUND", "there is no such thing"),
        Code::AlreadyExists => ("ALREADY_EXISTS", "it exists"),
        Code::PermissionDenied => ("PERMISSION_DENIED", "not allowed"),
        Code::ResourceExhausted => ("LIMIT_REACHED", "a limit of the transport is reached"),
        Code::FailedPrecondition => ("FAILED_PRECONDITION", "not in this state"),
        Code::Aborted => ("ABORTED", "the call was given up"),
        Code::OutOfRange => ("OUT_OF_RANGE", "out of range"),
        Code::Unimplemented => ("UNIMPLEMENTED", "no such call; reflection lists those that there are"),
        Code::Internal => ("INTERNAL", "the transport failed"),
        Code::Unavailable => ("UNAVAILABLE", "the transport is not available"),
        Code::DataLoss => ("DATA_LOSS", "the transport lost data"),
        Code::Unauthenticated => ("UNAUTHENTICATED", "not authenticated"),
    };
    Refusal {
        code: status.code(),
        reason,
        message: if message.is_empty() { otherwise } else { message }.to_owned(),
        metadata: HashMap::new(),
        retry: None,
        uncounted: None,
    }
}
