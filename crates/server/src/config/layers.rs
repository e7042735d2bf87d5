//! Where the texts of settings come from: the file, the environment, the flags; which of them wins; and the
//! refusal of keys that nobody knows. The only place that reads the environment.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{
    error::{ConfigError, Problem},
    settings::Setting,
    value::Value,
};

/// Environment variables of the server begin with this and have `__` between section and key.
const ENVIRONMENT_PREFIX: &str = "RIMSTONE_";

/// Variables that are not the server's: the command line's, and those of the tests, which start servers.
const ENVIRONMENT_OF_OTHERS: [&str; 5] =
    ["RIMSTONE_SERVER", "RIMSTONE_BINARY", "RIMSTONE_POWER_CUTS", "RIMSTONE_SEED", "RIMSTONE_TEST_DATA"];

/// Chooses a bug, in a build that has some. Any other build refuses it as an unknown setting.
pub(crate) const PLANTED: &str = "RIMSTONE_PLANTED";

/// Whether a variable is one that Kubernetes and Docker set by themselves for a service called `rimstone` or
/// `rimstone-something`: `RIMSTONE_SERVICE_HOST`, `RIMSTONE_PORT_9190_TCP_ADDR`.
fn is_service_link(name: &str) -> bool {
    ["_SERVICE_HOST", "_PORT"].iter().any(|end| name.ends_with(end))
        || ["_SERVICE_PORT_", "_PORT_"].iter().any(|middle| name.contains(middle))
}

/// The file that is read when none is named and it is there.
pub(crate) const DEFAULT_FILE: &str = "rimstone.toml";

/// A settings file is read into memory whole; nobody writes a longer one by hand.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How many allowed names are suggested for an unknown one.
const SUGGESTIONS_MAX: usize = 3;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// A settings file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// What one process start has to say about settings, in one place so that tests can say it too.
#[derive(Debug, Default)]
pub(crate) struct Inputs<'a> {
    pub(crate) file: Option<&'a Path>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) overrides: &'a [(String, String)],
}

/// The value of each setting, by full name, and where it came from.
pub(crate) type Resolved = BTreeMap<String, (Value, Source)>;

/// Reads all layers, later ones over earlier ones.
pub(crate) fn resolve(settings: &[Setting], inputs: &Inputs<'_>) -> Result<Resolved, ConfigError> {
    let mut resolved = Resolved::new();
    let mut problems = Vec::new();
    for setting in settings {
        let value = setting.kind.parse(setting.default).expect("a test parses every default");
        resolved.insert(setting.name(), (value, Source::Default));
    }
    let mut texts = from_file(settings, inputs.file, &mut problems);
    texts.extend(from_environment(settings, &inputs.environment, &mut problems));
    texts.extend(from_overrides(settings, inputs.overrides, &mut problems));
    for (setting, text, source) in texts {
        match setting.kind.parse(&text) {
            Ok(value) => drop(resolved.insert(setting.name(), (value, source))),
            Err(why) => problems.push(Problem::Value {
                key: setting.name(),
                value: text.chars().take(100).collect(),
                origin: source,
                why,
                allowed: setting.kind.allowed(),
            }),
        }
    }
    if problems.is_empty() { Ok(resolved) } else { Err(ConfigError { problems }) }
}

type Text<'a> = (&'a Setting, String, Source);

fn from_file<'a>(settings: &'a [Setting], file: Option<&Path>, problems: &mut Vec<Problem>) -> Vec<Text<'a>> {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    let text = match read_bounded(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => return Vec::new(),
        Err(error) => {
            problems.push(Problem::File { path: path.to_owned(), why: error.to_string() });
            return Vec::new();
        }
    };
    let table: toml::Table = match toml::from_str(&text) {
        Ok(table) => table,
        Err(error) => {
            problems.push(Problem::File { path: path.to_owned(), why: error.to_string() });
            return Vec::new();
        }
    };
    let source = Source::File(path.to_owned());
    let mut flat = Vec::new();
    for (section, value) in table {
        match value {
            toml::Value::Table(table) => flatten(&section, table, &mut flat),
            other => flat.push((section, other)),
        }
    }
    let mut texts: Vec<Text<'a>> = Vec::new();
    for (name, value) in flat {
        let Some(setting) = settings.iter().find(|setting| setting.name() == name) else {
            problems.push(unknown(name, source.clone(), settings.iter().map(Setting::name)));
            continue;
        };
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(flag) => flag.to_string(),
            toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                problems.push(Problem::Value {
                    key: name,
                    value: value.to_string().chars().take(100).collect(),
                    origin: source.clone(),
                    why: format!("it is of type {}", value.type_str()),
                    allowed: setting.kind.allowed(),
                });
                continue;
            }
        };
        if texts.iter().any(|(known, _, _)| known.name() == name) {
            problems.push(Problem::Twice { key: name, origin: source.clone() });
            continue;
        }
        texts.push((setting, text, source.clone()));
    }
    texts
}

fn from_environment<'a>(
    settings: &'a [Setting],
    environment: &[(OsString, OsString)],
    problems: &mut Vec<Problem>,
) -> Vec<Text<'a>> {
    let mut texts = Vec::new();
    for (name, value) in environment {
        let name = name.to_string_lossy().into_owned();
        if !name.starts_with(ENVIRONMENT_PREFIX)
            || ENVIRONMENT_OF_OTHERS.contains(&name.as_str())
            || cfg!(feature = "planted") && name == PLANTED
            || is_service_link(&name) && !name.contains("__")
        {
            continue;
        }
        let source = Source::Environment(name.clone());
        let Some(setting) = settings.iter().find(|setting| setting.environment_name() == name) else {
            problems.push(unknown(name, source, settings.iter().map(Setting::environment_name)));
            continue;
        };
        match value.to_str() {
            Some(text) => texts.push((setting, text.to_owned(), source)),
            None => problems.push(Problem::Value {
                key: setting.name(),
                value: value.to_string_lossy().chars().take(100).collect(),
                origin: source,
                why: "it is not UTF-8".to_owned(),
                allowed: setting.kind.allowed(),
            }),
        }
    }
    texts
}

fn from_overrides<'a>(
    settings: &'a [Setting],
    overrides: &[(String, String)],
    problems: &mut Vec<Problem>,
) -> Vec<Text<'a>> {
    let mut texts = Vec::new();
    for (name, text) in overrides {
        match settings.iter().find(|setting| setting.name() == *name) {
            Some(setting) => texts.push((setting, text.clone(), Source::Flag)),
            None => problems.push(unknown(name.clone(), Source::Flag, settings.iter().map(Setting::name))),
        }
    }
    texts
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// `[topic_defaults]` with `retention.ms = 1` is a table in a table to TOML; the setting is `retention.ms`.
fn flatten(prefix: &str, table: toml::Table, flat: &mut Vec<(String, toml::Value)>) {
    for (key, value) in table {
        let name = format!("{prefix}.{key}");
        match value {
            toml::Value::Table(inner) if !inner.is_empty() => flatten(&name, inner, flat),
            other => flat.push((name, other)),
        }
    }
}

fn unknown(key: String, origin: Source, allowed: impl Iterator<Item = String>) -> Problem {
    let mut ranked: Vec<_> = allowed.map(|name| (distance(&key, &name), name)).collect();
    ranked.sort();
    let nearest = ranked.into_iter().take(SUGGESTIONS_MAX).map(|(_, name)| name).collect();
    Problem::UnknownKey { key: key.chars().take(200).collect(), origin, nearest }
}

/// How many letters must be changed, added or taken away to make one name the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    // A name longer than any of ours by far is not a typing error; its beginning ranks as well.
    for (line, letter) in from.chars().take(200).enumerate() {
        let mut diagonal = line;
        row[0] = line + 1;
        for (column, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
