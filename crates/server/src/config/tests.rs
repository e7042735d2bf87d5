use std::{ffi::OsString, fs, net::SocketAddr, path::Path, time::Duration};

use rimstone_broker::{BrokerConfig, Failure as _, TopicSettings};
use rimstone_grpc::GrpcOptions;
use rimstone_store::TimestampType;
use rimstone_types::ByteCount;

use super::{
    Config, ConfigError, LogColor, Problem, Source,
    layers::Inputs,
    load,
    settings::{self},
    value::Kind,
};

/// A settings file with this text; the guard keeps it.
fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rimstone.toml");
    fs::write(&path, text).unwrap();
    (directory, path)
}

fn with(
    file: Option<&Path>,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, ConfigError> {
    let overrides: Vec<_> =
        flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    load(&Inputs {
        file,
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        overrides: &overrides,
    })
}

fn source_of(config: &Config, name: &str) -> Source {
    config.settings().iter().find(|report| report.name == name).unwrap().source.clone()
}

#[test]
fn defaults_stand_alone() {
    let config = with(None, &[], &[]).unwrap();
    assert_eq!(config.server.grpc_address, SocketAddr::from(([127, 0, 0, 1], 9190)));
    assert_eq!(config.server.web_address, SocketAddr::from(([127, 0, 0, 1], 9180)));
    assert_eq!(config.storage.data_directory, Path::new("./data"));
    assert!(config.settings().iter().all(|report| report.source == Source::Default));
}

#[test]
fn file_beats_default_environment_beats_file_flag_beats_all() {
    let (_guard, path) = file(
        "[server]\nshutdown_deadline = \"1s\"\ngrpc_address = \"127.0.0.1:1\"\nweb_address = \"localhost:2\"\n\
         [limits]\nconnections = 7\nrequest_bytes = \"2 MiB\"\n",
    );
    let environment =
        [("RIMSTONE_SERVER__SHUTDOWN_DEADLINE", "2s"), ("RIMSTONE_SERVER__GRPC_ADDRESS", "127.0.0.1:3")];
    let config = with(Some(&path), &environment, &[("server.grpc_address", "127.0.0.1:4")]).unwrap();
    assert_eq!(config.server.grpc_address.port(), 4);
    assert_eq!(config.server.web_address.port(), 2);
    assert_eq!(config.server.shutdown_deadline, Duration::from_secs(2));
    assert_eq!(config.grpc.connections_max, 7);
    assert_eq!(config.grpc.request_bytes_max, ByteCount::mib(2));
    assert_eq!(source_of(&config, "server.grpc_address"), Source::Flag);
    assert_eq!(
        source_of(&config, "server.shutdown_deadline"),
        Source::Environment("RIMSTONE_SERVER__SHUTDOWN_DEADLINE".to_owned())
    );
    assert_eq!(source_of(&config, "server.web_address"), Source::File(path));
    assert_eq!(source_of(&config, "limits.streams_per_connection"), Source::Default);
}

#[test]
fn variables_of_others_are_left_alone() {
    let others = [
        "RIMSTONE_SERVER",
        "RIMSTONE_TEST_DATA",
        "RIMSTONE_SEED",
        "RIMSTONE_SERVICE_HOST",
        "RIMSTONE_SERVICE_PORT",
        "RIMSTONE_SERVICE_PORT_GRPC",
        "RIMSTONE_PORT",
        "RIMSTONE_PORT_9190_TCP",
        "RIMSTONE_WEB_PORT_9180_TCP_ADDR",
        "RIMSTONES",
    ];
    with(None, &others.map(|name| (name, "tcp://10.0.0.1:9190")), &[]).unwrap();
    let refused = with(None, &[("RIMSTONE_SERVER__GRPC_PORT", "9190")], &[]).unwrap_err();
    assert!(refused.to_string().contains("RIMSTONE_SERVER__GRPC_ADDRESS"), "{refused}");
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_names() {
    let (_guard, path) = file("[server]\ngrpc_adress = \"127.0.0.1:1\"\n[limts]\nconnections = 3\n");
    let environment = [("RIMSTONE_STORAGE__DATA_DIR", "x"), ("RIMSTONE_LIMITS_CONNECTIONS", "one _ too few")];
    let error = with(Some(&path), &environment, &[("log.colour", "never")]).unwrap_err();
    let unknown: Vec<_> = error
        .problems
        .iter()
        .map(|problem| match problem {
            Problem::UnknownKey { key, nearest, .. } => (key.as_str(), nearest[0].as_str()),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(
        unknown,
        [
            ("limts.connections", "limits.connections"),
            ("server.grpc_adress", "server.grpc_address"),
            ("RIMSTONE_STORAGE__DATA_DIR", "RIMSTONE_STORAGE__DATA_DIRECTORY"),
            ("RIMSTONE_LIMITS_CONNECTIONS", "RIMSTONE_LIMITS__CONNECTIONS"),
            ("log.colour", "log.color"),
        ]
    );
    assert!(error.to_string().contains("unknown setting log.colour (flag); nearest: log.color"), "{error}");
}

#[test]
fn values_outside_their_bounds_are_refused_with_what_is_allowed() {
    for (name, value, what) in [
        ("limits.connections", "0", "a number from 1 to 65536"),
        ("limits.connections", "65537", "too large"),
        ("limits.connections", "-1", "not a whole number"),
        ("limits.request_bytes", "1 KiB", "too small"),
        ("limits.request_bytes", "1 MB", "not a whole number with B, KiB"),
        ("limits.request_bytes", "99999999999 TiB", "too large"),
        ("server.shutdown_deadline", "10", "no unit"),
        ("server.shutdown_deadline", "1h", "too large"),
        ("server.shutdown_deadline", "soon", "100ms to 10m"),
        ("server.grpc_address", "9190", "IP:PORT"),
        ("server.grpc_address", "example.org:1", "IP:PORT"),
        ("server.allow_unauthenticated_remote", "yes", "true or false"),
        ("storage.backend", "tape", "local or memory"),
        ("storage.data_directory", "", "it is empty"),
        ("log.filter", "rimstone_store=loud", "log.filter"),
        ("limits.request_timeout", "1m", "longer than limits.fetch_wait"),
    ] {
        let error = with(None, &[], &[(name, value)]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(what), "{name} = {value}: {error}");
    }
}

#[test]
fn every_problem_is_reported_at_once() {
    let (_guard, path) = file("[server]\nshutdown_deadline = 5\nnonsense = 1\n[log]\nformat = [\"text\"]\n");
    let error = with(Some(&path), &[], &[]).unwrap_err();
    assert_eq!(error.problems.len(), 3, "{error}");
    assert!(error.to_string().contains("it is of type array"), "{error}");
}

#[test]
fn a_file_that_was_named_must_be_there_and_be_toml() {
    let missing = Path::new("/nonexistent/rimstone.toml");
    let error = with(Some(missing), &[], &[]).unwrap_err();
    assert!(matches!(&error.problems[..], [Problem::File { path, .. }] if path == missing), "{error}");
    let (_guard, path) = file("[server\n");
    let error = with(Some(&path), &[], &[]).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
    let (_guard, path) = file(&format!("# {}", "x".repeat(1 << 20)));
    let error = with(Some(&path), &[], &[]).unwrap_err().to_string();
    assert!(error.contains("longer than"), "{error}");
}

#[test]
fn addresses_that_others_can_reach_need_a_word() {
    for address in ["0.0.0.0:0", "192.0.2.1:9190", "[::]:0"] {
        for name in ["server.grpc_address", "server.web_address"] {
            let error = with(None, &[], &[(name, address)]).unwrap_err();
            assert!(matches!(&error.problems[..], [Problem::Refused { key, .. }] if key == name), "{error}");
            assert!(error.to_string().contains("server.allow_unauthenticated_remote"), "{error}");
            with(None, &[], &[(name, address), ("server.allow_unauthenticated_remote", "true")]).unwrap();
        }
    }
    for address in ["127.0.0.1:0", "127.9.9.9:0", "[::1]:0", "localhost:0"] {
        with(None, &[], &[("server.grpc_address", address)]).unwrap();
    }
}

#[test]
fn what_is_rendered_reads_back_as_the_same() {
    let flags = [
        ("limits.request_bytes", "2097153"),
        ("log.filter", "warn,rimstone_store=debug"),
        ("storage.data_directory", "/tmp/a \"b\""),
    ];
    let config = with(None, &[], &flags).unwrap();
    let (_guard, path) = file(&config.render());
    let again = with(Some(&path), &[], &[]).unwrap();
    let values = |config: &Config| -> Vec<_> {
        config.settings().iter().map(|report| (report.name.clone(), report.value.clone())).collect()
    };
    assert_eq!(values(&config), values(&again));
    assert!(again.settings().iter().all(|report| report.source == Source::File(path.clone())));
}

#[test]
fn no_color_turns_auto_off_and_nothing_else() {
    let color = |environment: &[(&str, &str)], flags: &[(&str, &str)]| {
        with(None, environment, flags).unwrap().log.color
    };
    assert_eq!(color(&[], &[]), LogColor::Auto);
    assert_eq!(color(&[("NO_COLOR", "1")], &[]), LogColor::Never);
    assert_eq!(color(&[("NO_COLOR", "")], &[]), LogColor::Auto);
    assert_eq!(color(&[("NO_COLOR", "1")], &[("log.color", "always")]), LogColor::Always);
}

#[test]
fn values_that_are_not_text_are_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let inputs = Inputs {
        environment: vec![("RIMSTONE_LOG__FORMAT".into(), OsString::from_vec(vec![b't', 0xff]))],
        ..Inputs::default()
    };
    let error = load(&inputs).unwrap_err().to_string();
    assert!(error.contains("not UTF-8"), "{error}");
}

#[test]
fn topic_defaults_go_by_kafkas_names_in_three_spellings() {
    let (_guard, path) = file(
        "[topic_defaults]\nretention.ms = 1000\n\"segment.bytes\" = \"8192\"\nmax.message.bytes = 2048\npartitions = 6\n",
    );
    let environment = [("RIMSTONE_TOPIC_DEFAULTS__MESSAGE_TIMESTAMP_TYPE", "LogAppendTime")];
    let broker = with(Some(&path), &environment, &[]).unwrap().broker;
    assert_eq!(broker.default_partitions.get(), 6);
    assert_eq!(broker.topic_defaults.partition.retention_age, Some(Duration::from_secs(1)));
    assert_eq!(broker.topic_defaults.partition.segment_bytes, ByteCount::kib(8));
    assert_eq!(broker.topic_defaults.max_message_bytes, ByteCount::kib(2));
    assert_eq!(broker.topic_defaults.partition.timestamp_type, TimestampType::AppendTime);
    for (name, value) in [("cleanup.policy", "compacted"), ("segment.bytes", "1"), ("rimstone.ack", "never")]
    {
        let name = format!("topic_defaults.{name}");
        let error = with(None, &[], &[(&name, value)]).unwrap_err();
        assert!(matches!(&error.problems[..], [Problem::Value { key, .. }] if *key == name), "{error}");
    }
    let error = with(None, &[], &[("topic_defaults.max.message.bytes", "8388608")]).unwrap_err();
    assert!(error.to_string().contains("limits.request_bytes"), "{error}");
}

#[test]
fn the_table_says_what_the_broker_has() {
    let config = with(None, &[], &[]).unwrap();
    assert_eq!(config.broker, BrokerConfig::default());
    assert_eq!(config.grpc, GrpcOptions::default());
    // Every topic setting has a default here: the broker's refusal lists them all.
    let refusal = TopicSettings::default().set("", "").unwrap_err();
    let details = refusal.details();
    let (_, names) = details.iter().find(|(key, _)| *key == "allowed").unwrap();
    let mut ours: Vec<_> = settings::all()
        .iter()
        .filter(|setting| setting.kind == Kind::Topic)
        .map(|setting| setting.key)
        .collect();
    let mut theirs: Vec<_> = names.split(',').collect();
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);
}

#[test]
fn the_table_is_sound() {
    let settings = settings::all();
    for setting in &settings {
        let value = setting.kind.parse(setting.default).unwrap();
        assert_eq!(setting.kind.parse(&value.to_string()).unwrap(), value, "{}", setting.name());
        assert!(!setting.about.is_empty());
        assert!(setting.kind == Kind::Topic || !setting.kind.allowed().is_empty());
    }
    let mut names: Vec<_> = settings.iter().map(|setting| setting.environment_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), settings.len(), "two settings share a variable");
}
