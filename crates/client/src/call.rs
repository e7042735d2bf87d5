//! One unary call: its deadline, and what is said when nobody answers. Nothing is retried here.

use std::time::Duration;

use tonic::{Response, Status};

use crate::{
    connect::Connection,
    error::{ClientError, Code, reason},
};

/// How long a call may take: far above what any of them needs on a healthy server.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn call<T>(
    connection: &Connection,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => {
            let message = format!("{} did not answer within {TIMEOUT:?}", connection.endpoint());
            Err(ClientError::new(Code::DeadlineExceeded, reason::UNREACHABLE, message))
        }
    }
}
