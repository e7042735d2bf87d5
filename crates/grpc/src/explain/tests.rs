use tonic_types::StatusExt as _;

use super::*;

fn explained_of(status: Status) -> Status {
    Status::from_header_map(explain(status.into_http()).headers()).unwrap()
}

#[test]
fn bare_errors_get_a_reason() {
    for (bare, code, reason) in [
        (Status::unimplemented(""), Code::Unimplemented, "UNIMPLEMENTED"),
        (Status::deadline_exceeded("Timeout expired"), Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (
            Status::out_of_range(
                "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes",
            ),
            Code::InvalidArgument,
            "INVALID_REQUEST",
        ),
        (
            Status::internal("failed to decode Protobuf message: invalid wire type"),
            Code::InvalidArgument,
            "INVALID_REQUEST",
        ),
        (Status::internal("something else"), Code::Internal, "INTERNAL"),
    ] {
        let status = explained_of(bare);
        assert_eq!(status.code(), code);
        assert_eq!(status.get_details_error_info().unwrap().reason, reason);
        assert!(!status.message().is_empty());
    }
}

#[test]
fn what_has_details_or_is_no_error_stays() {
    let ours = Refusal::invalid("no").with("topic", "t");
    let status = explained_of(ours.clone().into_status());
    assert_eq!(status.get_details_error_info().unwrap().metadata["topic"], "t");
    let fine = explain(Response::new(Body::empty()));
    assert!(fine.headers().is_empty());
}
