//! `aip demo`: a mesh of three agents that shows every promise, step by step. Each step reads back from the running
//! system; none fakes anything.
//!
//! A step is one file with its list of promises and one function. [`board`] keeps what was shown, [`mesh`] runs the
//! processes, [`files`] is what they are made of, [`look`] asks them, [`access`] reads the sidecars' logs, [`stranger`]
//! is the adversary. To add a step: a file, its promises, a line in [`steps`].

mod access;
mod again;
mod board;
mod calls;
mod denied;
mod drift;
mod files;
mod hop;
mod identity;
mod kill;
mod look;
mod mesh;
mod outage;
mod reputation;
mod rollout;
mod stranger;
mod strangers;
mod text;
mod trail;

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use self::board::Board;
use self::mesh::Mesh;
use crate::Globals;
use crate::exit::Exit;
use crate::process::Signals;

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// End after the last step instead of leaving the mesh up
    #[arg(long)]
    once: bool,
}

impl Demo {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::catch()?;
        let started = Instant::now();
        let mut board = Board::new(globals.json());
        let mut mesh = Mesh::prepare()?;
        board.say("AIP demo: a control plane, three agents that know nothing of AIP, one sidecar each.");
        board.say(&format!("Everything lies in {}.", mesh.dir.path().display()));
        let ended = tokio::select! {
            _ = signals.next() => None,
            () = Box::pin(steps(&mut mesh, &mut board)) => Some(board.all_shown()),
        };
        if ended.is_some() {
            board.summary(started.elapsed());
            if !self.once {
                what_to_try(&board, &mesh);
                signals.next().await;
            }
        }
        mesh.stop().await;
        Ok(match ended {
            Some(true) => ExitCode::SUCCESS,
            Some(false) => ExitCode::from(Exit::Failed as u8),
            // Ended by a signal, as shells say it.
            None => ExitCode::from(130),
        })
    }
}

/// All steps in order. A step that breaks off leaves its promises failed, and the next one goes on.
async fn steps(mesh: &mut Mesh, board: &mut Board) {
    board.begin(
        "Three agents, attested: each proves what it runs and gets an SVID",
        &identity::PROMISES,
    );
    let ended = Box::pin(identity::show(mesh, board)).await;
    let up = ended.is_ok();
    board.finish(ended);
    if !up {
        // Without agents every later step would only repeat this one's failure.
        return;
    }
    board.begin("A call through both sidecars, decided at both ends", &hop::PROMISES);
    let ended = Box::pin(hop::show(mesh, board)).await;
    board.finish(ended);
    board.begin("A call that policy denies", &denied::PROMISES);
    let ended = Box::pin(denied::show(mesh, board)).await;
    board.finish(ended);
    board.begin("Strangers at the door", &strangers::PROMISES);
    let ended = Box::pin(strangers::show(mesh, board)).await;
    board.finish(ended);
    board.begin("Policy changed while everything runs", &rollout::PROMISES);
    let ended = Box::pin(rollout::show(mesh, board)).await;
    board.finish(ended);
    board.begin("The control plane is killed", &outage::PROMISES);
    let ended = Box::pin(outage::show(mesh, board)).await;
    board.finish(ended);
    board.begin("An agent's file is edited while it runs", &drift::PROMISES);
    let ended = Box::pin(drift::show(mesh, board)).await;
    board.finish(ended);
    board.begin("A hallucination is reported", &reputation::PROMISES);
    let ended = Box::pin(reputation::show(mesh, board)).await;
    board.finish(ended);
    board.begin("An agent is stopped, everywhere and at once", &kill::PROMISES);
    let ended = Box::pin(kill::show(mesh, board)).await;
    board.finish(ended);
    board.begin("The audit trail, proved from the files of both ends", &trail::PROMISES);
    let ended = Box::pin(trail::show(mesh, board)).await;
    board.finish(ended);
    board.begin("A denied call, decided again from its record", &again::PROMISES);
    let ended = Box::pin(again::show(mesh, board)).await;
    board.finish(ended);
}

/// Where this program lies, unless a shell finds it by name.
fn own_directory() -> Option<String> {
    let own = std::env::current_exe().ok()?;
    let found = crate::process::in_path("aip").and_then(|path| std::fs::canonicalize(path).ok());
    (found.as_ref() != Some(&own)).then(|| own.parent().map(|dir| dir.display().to_string()))?
}

fn what_to_try(board: &Board, mesh: &Mesh) {
    let home = mesh.home.path().display();
    board.say("");
    board.say("The mesh stays up. In another terminal:");
    if let Some(dir) = own_directory() {
        board.say(&format!("  export PATH=\"{dir}:$PATH\""));
    }
    board.say(&format!("  export AIP_HOME={home}"));
    for line in [
        "aip status",
        "aip call researcher /mcp --from planner --data '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"}'",
        "# denied:",
        "aip call ledger /mcp --from planner --data '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",",
        "   \"params\":{\"name\":\"close_books\"}}'",
        "aip policy list",
        "aip attest list",
        "aip audit query --verdict deny",
        "aip audit verify",
        "aip dump",
    ] {
        board.say(&format!("  {line}"));
    }
    if let Ok(Some(planner)) = mesh.state("planner").map(|planner| planner.address) {
        board.say(&format!("  curl -s {planner}/plan -d '{{\"goal\":\"shore\"}}'"));
    }
    board.say("Ctrl-C ends it and leaves nothing behind.");
}
