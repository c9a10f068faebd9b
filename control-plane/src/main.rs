//! The control plane's process.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use aip_control_plane::admin::admission::SUBCOMMAND;
use aip_control_plane::bootstrap;
use aip_control_plane::server::ControlPlane;
use aip_control_plane::settings::Flags;
use aip_runtime::settings::{MISTAKE, Said, SettingsError};
use anyhow::Context as _;

/// Largest request of a policy check: a policy with data and tests, as JSON.
const MAX_REQUEST: u64 = 4 * 1024 * 1024;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|arg| arg == SUBCOMMAND) {
        return admit();
    }
    let done = if std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == bootstrap::SUBCOMMAND)
    {
        reset_admin()
    } else {
        run()
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            aip_runtime::telemetry::last_words("aip-control-plane", &with_causes(&error));
            match error.downcast_ref::<SettingsError>() {
                Some(mistake) if mistake.is_mistake() => ExitCode::from(MISTAKE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// An error with its causes, each said once: most errors say theirs themselves.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

/// `aip-control-plane reset-admin --data DIR [--key-file FILE]`.
fn reset_admin() -> anyhow::Result<()> {
    let program_and_flags = std::env::args_os().enumerate().filter(|(at, _)| *at != 1);
    let (flags, said) = Said::parse::<Flags>(program_and_flags.map(|(_, argument)| argument));
    let settings = flags.resolve(said)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(bootstrap::reset_admin(&settings))?;
    let file = settings.data.join(bootstrap::ADMIN_TOKEN_FILE);
    println!(
        "every admin token was revoked, and what waited for a second person is void; a new token is in {}",
        file.display()
    );
    Ok(())
}

/// The child process that may die: a policy on standard input, the verdict on standard output.
fn admit() -> ExitCode {
    if aip_runtime::admission::confine().is_err() {
        return ExitCode::FAILURE;
    }
    let mut request = Vec::new();
    if std::io::stdin()
        .lock()
        .take(MAX_REQUEST)
        .read_to_end(&mut request)
        .is_err()
    {
        return ExitCode::FAILURE;
    }
    let answer = aip_policy::admission::serve(&request);
    match std::io::stdout().write_all(&answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> anyhow::Result<()> {
    let (flags, said) = Said::parse::<Flags>(std::env::args_os());
    let lifeline = flags.lifeline;
    let settings = flags.resolve(said)?;
    aip_runtime::telemetry::init_logs(settings.log_format, &settings.log);
    aip_runtime::limits::raise_open_files();
    if lifeline {
        aip_runtime::shutdown::follow_standard_input().context("--lifeline")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // Listening for the signal begins before the start: a stop during it is not lost.
        let mut signal = std::pin::pin!(aip_runtime::shutdown::signal());
        let running = tokio::select! {
            running = ControlPlane::start(settings) => running?,
            name = signal.as_mut() => anyhow::bail!("stopped by {name} during the start"),
        };
        let name = signal.await;
        tracing::info!(signal = name, "stopping");
        let idle = running.shutdown().await;
        tracing::info!(idle, "stopped");
        Ok(())
    })
}
