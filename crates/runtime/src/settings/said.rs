//! Where each setting was said (a flag, a variable, a line of the file), so that a mistake names the place to mend.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

use aip_api::problem::FieldError;
use clap::Parser;
use clap::parser::ValueSource;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// One value as it was written, not looked at yet: a mistake in it must not hide the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl FromStr for Text {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.into())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneValue)
    }
}

struct OneValue;

impl<'de> Visitor<'de> for OneValue {
    type Value = Text;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value")
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<Text, E> {
        Ok(value.into())
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Text, E> {
        Ok(Text(value.to_string()))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Text, E> {
        Ok(Text(value.to_string()))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Text, E> {
        Ok(Text(value.to_string()))
    }
    fn visit_enum<A: de::EnumAccess<'de>>(self, _: A) -> Result<Text, A::Error> {
        Err(de::Error::custom("a tag (`!…`) stands before it; expected one value"))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Text, E> {
        Ok(Text(value.to_string()))
    }
}

/// Where settings were said.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// Flag or variable, by the setting's name.
    start: HashMap<String, String>,
    /// Line of the file, by the setting's name.
    pub(super) lines: HashMap<String, usize>,
}

impl Said {
    /// Reads the command line and the variables, and ends the process where it asks for help or names no flag of ours.
    /// What variables hold is not shown by `--help`: it may be read over a shoulder, or end in a ticket.
    pub fn parse<F: Parser>(arguments: impl IntoIterator<Item = OsString>) -> (F, Self) {
        let command = F::command().mut_args(|argument| argument.hide_env_values(true));
        let matches = command.clone().get_matches_from(arguments);
        let flags = F::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let mut said = Self::default();
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            let place = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => argument.get_long().map(|long| format!("--{long}")),
                Some(ValueSource::EnvVariable) => argument.get_env().map(|name| name.to_string_lossy().into_owned()),
                _ => None,
            };
            said.start.extend(place.map(|place| (id.to_owned(), place)));
        }
        (flags, said)
    }

    /// Adds what checks found to what reading the file did, each with its place. A value of the file that can't be read
    /// is not also missing.
    pub fn add(&self, mistakes: &mut Vec<FieldError>, found: Vec<FieldError>) {
        let unread: Vec<String> = mistakes.iter().map(|mistake| mistake.field.clone()).collect();
        for FieldError { field, message } in found {
            if let Some(place) = self.start.get(&field) {
                mistakes.push(FieldError::new(place, message));
            } else if !unread.contains(&field) {
                mistakes.push(at_line(self.lines.get(&field), field, &message));
            }
        }
    }
}

pub(super) fn at_line(line: Option<&usize>, field: String, message: &str) -> FieldError {
    match line {
        Some(line) => FieldError::new(field, format!("line {line}: {message}")),
        None => FieldError::new(field, message),
    }
}

/// The value of `text`, where there is one and it is one. Else there is a mistake with what was got and what `allowed`
/// says: "IP:PORT", "json or text".
pub fn parsed<T>(
    mistakes: &mut Vec<FieldError>,
    field: &str,
    text: Option<&Text>,
    allowed: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let text = text?.as_str();
    let value = parse(text);
    if value.is_none() {
        mistakes.push(FieldError::new(field, format!("{text:?} is not {allowed}")));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[arg(long, env = "AIP_TEST_SAID_HOME")]
        home: Option<Text>,
        #[arg(long)]
        workers: Option<Text>,
    }

    #[test]
    fn a_mistake_names_the_flag_or_the_line_that_it_came_from() {
        let arguments = ["program", "--workers", "many"].map(OsString::from);
        let (flags, mut said) = Said::parse::<Flags>(arguments);
        said.lines.insert("home".into(), 3);
        let mut found = Vec::new();
        let number = |text: &str| text.parse::<u8>().ok();
        assert_eq!(
            parsed(&mut found, "workers", flags.workers.as_ref(), "a number", number),
            None
        );
        assert_eq!(
            parsed(&mut found, "home", flags.home.as_ref(), "a number", number),
            None
        );
        found.push(FieldError::new("home", "is far"));
        found.push(FieldError::new("agent", "is missing"));
        // The file's own value can't be read either, and that of the flag is another mistake.
        let mut mistakes = vec![
            FieldError::new("workers", "line 1: unreadable"),
            FieldError::new("agent", "line 2: unreadable"),
        ];
        said.add(&mut mistakes, found);
        let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            mistakes,
            [
                "workers: line 1: unreadable",
                "agent: line 2: unreadable",
                "--workers: \"many\" is not a number",
                "home: line 3: is far",
            ]
        );
    }

    #[test]
    fn every_scalar_is_a_value() {
        for (yaml, text) in [
            ("3", "3"),
            ("true", "true"),
            ("a:b", "a:b"),
            ("\"3\"", "3"),
            ("-1", "-1"),
        ] {
            assert_eq!(serde_yaml::from_str::<Text>(yaml).unwrap(), Text::from(text));
        }
        for no_value in ["[1]", "{a: b}", "!tag a"] {
            let error = serde_yaml::from_str::<Text>(no_value).unwrap_err().to_string();
            assert!(error.contains("expected one value"), "{error}");
        }
    }
}
