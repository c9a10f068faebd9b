//! `aip-sidecar`: the data plane of AIP.

use std::process::ExitCode;

use aip_runtime::settings::{MISTAKE, Said};
use aip_runtime::{shutdown, telemetry};
use aip_sidecar::kill::supervisor::Supervisor;
use aip_sidecar::{app, config::Flags};

/// Requests are many small allocations that live for a moment, on threads that share none of them: a tenth of the CPU
/// time of a hop under the C library's allocator. Without huge pages, which would double the memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads for all that is no request: identity, configuration, accepting. Two, so that compiling a large policy does not
/// hold up the rest; requests have workers of their own.
const CONTROL_THREADS: usize = 2;

fn main() -> ExitCode {
    let (flags, said) = Said::parse::<Flags>(std::env::args_os());
    if flags.measure {
        return measure(&flags, &said);
    }
    let lifeline = flags.lifeline;
    let config = match flags.resolve(said) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("aip-sidecar: {error}");
            return ExitCode::from(MISTAKE);
        }
    };
    telemetry::init_logs(config.log_format, &config.log);
    aip_runtime::limits::raise_open_files();
    // Keys live in this process: no core dump, and no other process of this user attaches to it.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "this process can be dumped");
    }
    if lifeline && let Err(error) = shutdown::follow_standard_input() {
        eprintln!("aip-sidecar: --lifeline: {error}");
        return ExitCode::FAILURE;
    }
    let supervisor = match lifeline {
        true => Supervisor::on_standard_input(),
        false => Supervisor::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .enable_all()
        .build();
    let ended = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(Box::pin(app::run(config, supervisor))));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::last_words("aip-sidecar", &aip_runtime::why(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Prints what would be measured: `aip attest measure` shows it, so that one code measures everywhere.
fn measure(flags: &Flags, said: &Said) -> ExitCode {
    let (mut errors, mut found) = (Vec::new(), Vec::new());
    let declared = flags.measured(&mut found);
    said.add(&mut errors, found);
    for error in &errors {
        eprintln!("aip-sidecar: {error}");
    }
    let measured = aip_sidecar::identity::measure(&declared);
    match measured
        .map_err(|e| e.to_string())
        .and_then(|m| serde_json::to_string(&m).map_err(|e| e.to_string()))
    {
        Ok(text) if errors.is_empty() => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Ok(_) => ExitCode::from(MISTAKE),
        Err(error) => {
            eprintln!("aip-sidecar: {error}");
            ExitCode::FAILURE
        }
    }
}
