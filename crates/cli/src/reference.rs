//! `docs/cli.md` is made from the command itself: `AIP_REGENERATE=1 cargo test -p aip` writes it.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command, CommandFactory as _};

use crate::Aip;
use crate::exit::Exit;

const INTRODUCTION: &str = "# The `aip` command

Made from the command itself; a test fails when it differs. `AIP_REGENERATE=1 cargo test -p aip` writes it.

`aip` talks to a control plane only by its admin API, with a bearer token from a file. `aip up` writes how to reach the
one it started to `<home>/context.json`, so that on one machine nothing has to be passed: it goes over the control plane's
Unix socket there, the only way by which a prod mesh takes changes.

Tables and sentences for people go to standard output, notes and errors to standard error. `--output json` prints one
JSON document instead. An error says what failed, why, and what to do next.
";

const FILES: &str = "## Files

| below `AIP_HOME` (`~/.aip`) | what |
|---|---|
| `context.json` | how to reach the control plane: admin API, mesh port, token file, digest of the root |
| `control-plane/`, `control-plane.key`, `control-plane.log` | its data, the key that seals its secrets, its log |
| `agents/<name>/state.json` | ports, process ids and phase of one `aip run`, for programs |
| `agents/<name>/sidecar.log` | the sidecar's log: JSON lines, one per request; turned over at 32 MiB |
| `agents/<name>/data/`, `runtime/` | the sidecar's signed cache and its sealed key |
| `agents/<name>/proxy-secret`, `join-token` | what the agent shows its sidecar, and the sidecar the control plane; 0600 |
";

const RUN: &str = "What the command sees: `HTTP_PROXY`, `HTTPS_PROXY`, `WS_PROXY`, `WSS_PROXY` and all in lower case, with a secret of its own in the URL;
`NO_PROXY` and `no_proxy` (`127.0.0.1,localhost,::1`); `NODE_USE_ENV_PROXY=1`; the proxy properties in
`JAVA_TOOL_OPTIONS` (they carry no credentials: [what Java needs](runtimes.md#java)); `AIP_URL`; `PORT`.
`ALL_PROXY` and the variables that open the control plane are removed. Standard input is closed where it is a terminal.

A command that only calls and never listens is run with `--no-serve`: it gets no `PORT`, nothing waits for it to listen, and
calls to it are refused with `serves_nothing`, which counts against nobody's reputation. Where it runs as its sidecar's own
user, the sidecar takes calls of that user alone.

A prod mesh asks that the command runs as another user than its sidecar: `--user`, which only root can do. The command
then reads only what that user may.

Measured are the executable, the arguments that are files (also behind `--option=`), and `--code`. A sidecar that dies is
started again on the same ports; a command that ends, ends `aip run` with its own status. SIGTERM, SIGINT and SIGHUP let
the sidecar drain (5 s), reach the command's process group, and after `--grace` both groups are killed. A second signal
kills at once. Where `aip run` itself is killed, the sidecar ends as at SIGTERM, and a guard process ends the command's
group: SIGTERM, and SIGKILL after `--grace`.

";

fn reference() -> String {
    let mut out = INTRODUCTION.to_owned();
    out.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for (code, meaning) in Exit::ALL {
        let _ = writeln!(out, "| {code} | {meaning} |");
    }
    out.push_str("\n`aip run` ends with the status of its command; by a signal, 128 and its number.\n\n");
    out.push_str(FILES);
    let mut command = Aip::command();
    command.build();
    out.push_str("\n## Options of every verb\n\n");
    arguments(&mut out, command.get_arguments().filter(|a| a.is_global_set()));
    for verb in command.get_subcommands().filter(|c| shown(c)) {
        section(&mut out, verb, "aip");
    }
    out
}

fn shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

fn section(out: &mut String, command: &Command, above: &str) {
    let name = format!("{above} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let verbs: Vec<&Command> = command.get_subcommands().filter(|c| shown(c)).collect();
    // A verb of its own that has others below it is both; a mere group is none.
    if verbs.is_empty() || !command.is_subcommand_required_set() {
        verb(out, command, &name, &about);
    }
    for below in verbs {
        section(out, below, &name);
    }
}

fn verb(out: &mut String, command: &Command, name: &str, about: &str) {
    let _ = write!(out, "\n## `{name}`\n\n{about}.\n\n");
    if name == "aip run" {
        out.push_str(RUN);
    }
    let usage = command.clone().render_usage().to_string();
    let _ = write!(out, "```\n{}\n```\n\n", usage.trim_start_matches("Usage: "));
    arguments(out, command.get_arguments().filter(|a| !a.is_global_set()));
}

fn arguments<'a>(out: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let rows: Vec<String> = arguments
        .filter(|a| !a.is_hide_set() && !["help", "version"].contains(&a.get_id().as_str()))
        .map(row)
        .collect();
    if !rows.is_empty() {
        let _ = write!(out, "| argument | what |\n|---|---|\n{}\n", rows.join("\n"));
    }
}

fn row(argument: &Arg) -> String {
    let values: Vec<String> = argument
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    let takes = argument.get_action().takes_values();
    let values = if takes {
        format!(" {}", values.join(" "))
    } else {
        String::new()
    };
    let short = argument.get_short().map(|s| format!("-{s}, ")).unwrap_or_default();
    let name = match argument.get_long() {
        Some(long) => format!("{short}--{long}{values}"),
        None => values.trim().to_owned(),
    };
    let mut what = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let possible: Vec<String> = argument
        .get_possible_values()
        .iter()
        .map(|p| p.get_name().to_owned())
        .collect();
    if takes && !possible.is_empty() {
        let _ = write!(what, " ({})", possible.join(", "));
    }
    let default: Vec<_> = argument
        .get_default_values()
        .iter()
        .map(|d| d.to_string_lossy())
        .collect();
    if takes && !default.is_empty() && !default.iter().all(|d| d.is_empty()) {
        let _ = write!(what, " [default: {}]", default.join(" "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(what, " [variable: {}]", variable.to_string_lossy());
    }
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    format!("| `{}` | {} |", cell(&name), cell(&what))
}

#[test]
fn the_reference_is_the_commands_own() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let expected = reference();
    if std::env::var_os("AIP_REGENERATE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/cli.md is stale: AIP_REGENERATE=1 cargo test -p aip writes it"
    );
}

#[test]
fn the_command_line_is_well_formed() {
    Aip::command().debug_assert();
}
