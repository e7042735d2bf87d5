//! Health, reflection, what the transport answers by itself, and starts that fail.

use rimstone_proto::v1::{self, admin_service_client::AdminServiceClient};
use rimstone_server::{StartError, start};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{Server, assert_refused, config, server, server_with, soon};

const SERVICES: [&str; 6] = [
    "rimstone.v1.ProduceService",
    "rimstone.v1.ConsumeService",
    "rimstone.v1.GroupService",
    "rimstone.v1.LagService",
    "rimstone.v1.ReplayService",
    "rimstone.v1.AdminService",
];

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_per_service() {
    let server = server().await;
    let mut health = HealthClient::new(server.channel.clone());
    for service in SERVICES.into_iter().chain([""]) {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = soon(health.check(request)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let unknown = HealthCheckRequest { service: "none".to_owned() };
    assert_refused(soon(health.check(unknown)).await, Code::NotFound, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_and_gives_their_files() {
    let server = server().await;
    let ask = async |message| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        let mut client = ServerReflectionClient::new(server.channel.clone());
        let answers = soon(client.server_reflection_info(tokio_stream::iter([request]))).await.unwrap();
        soon(answers.into_inner().message()).await.unwrap().unwrap().message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(listed) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("not a list");
    };
    let names: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
    for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
        assert!(names.contains(&service), "{names:?}");
    }
    let symbol = MessageRequest::FileContainingSymbol("rimstone.v1.AdminService".to_owned());
    let MessageResponse::FileDescriptorResponse(file) = ask(symbol).await else { panic!("not a file") };
    assert!(!file.file_descriptor_proto.is_empty());

    // The older version of the protocol, which some tools still speak first.
    use tonic_reflection::pb::v1alpha as old;
    let request = old::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(old::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = old::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
    let answers = soon(client.server_reflection_info(tokio_stream::iter([request]))).await.unwrap();
    let answer = soon(answers.into_inner().message()).await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(answer, old::server_reflection_response::MessageResponse::ListServicesResponse(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_transport_are_explained_too() {
    let server = server().await;
    // A call that does not exist: the right messages to a path that nobody serves.
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    soon(client.ready()).await.unwrap();
    let path = "/rimstone.v1.AdminService/Nonsense".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<v1::ListTopicsRequest, v1::ListTopicsResponse>::default();
    let outcome =
        soon(client.unary(tonic::Request::new(v1::ListTopicsRequest::default()), path, codec)).await;
    assert_refused(outcome, Code::Unimplemented, "UNIMPLEMENTED");
    // A call that exists, with bytes that are another message: a string where a number belongs.
    let path = "/rimstone.v1.AdminService/ListTopics".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<v1::DescribeTopicRequest, v1::ListTopicsResponse>::default();
    let wrong = v1::DescribeTopicRequest { topic: "t".to_owned() };
    soon(client.ready()).await.unwrap();
    let outcome = soon(client.unary(tonic::Request::new(wrong), path, codec)).await;
    assert_refused(outcome, Code::InvalidArgument, "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_named_with_its_setting() {
    let server = server().await;
    for (setting, other, busy) in [
        ("server.grpc_address", "server.web_address", server.started.grpc_address()),
        ("server.web_address", "server.grpc_address", server.started.web_address()),
    ] {
        let settings = [(setting, busy.to_string()), (other, "127.0.0.1:0".to_owned())];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let error = soon(start(config(&settings))).await.unwrap_err();
        assert!(matches!(error, StartError::Bind { address, .. } if address == busy), "{error}");
        let text = error.to_string();
        assert!(text.contains(&busy.to_string()) && text.contains(setting), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_closed() {
    let server = server_with(&[("limits.connections", "1")]).await;
    let mut first = server.admin();
    soon(first.list_topics(v1::ListTopicsRequest::default())).await.unwrap();
    let mut stream = soon(TcpStream::connect(server.started.grpc_address())).await.unwrap();
    assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0, "closed without a word");
    soon(first.list_topics(v1::ListTopicsRequest::default())).await.unwrap();
    // When the first is gone there is room again.
    let Server { started, channel } = server;
    drop((first, channel));
    soon(async {
        loop {
            // Connecting can fail too: the connection is closed before a word is said.
            let address = format!("http://{}", started.grpc_address());
            let Ok(mut client) = AdminServiceClient::connect(address).await else { continue };
            if client.list_topics(v1::ListTopicsRequest::default()).await.is_ok() {
                break;
            }
        }
    })
    .await;
}
