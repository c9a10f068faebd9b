//! What a renewal finds, where nobody watched.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use aip_runtime::ready::Readiness;
use aip_runtime::settings::Said;
use aip_runtime::svid::SvidSource;
use aip_runtime::trust::TrustState;
use tokio::sync::mpsc;

use super::{Alarm, Suspension};
use crate::config::Flags;
use crate::identity::keeper::Keeper;
use crate::identity::measure;
use crate::mesh::world::Origin;

/// How long a drift may take to be found here: machines are slow at times.
const DEADLINE: Duration = Duration::from_secs(30);

/// A sidecar whose control plane counts who comes, and that watches nothing.
struct Unwatched {
    keeper: Keeper,
    alarm: Alarm,
    control_plane: TcpListener,
    dir: tempfile::TempDir,
    _origins: mpsc::Receiver<Origin>,
}

impl Unwatched {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["app", "data"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        fs::write(dir.path().join("app/main.py"), "as approved").unwrap();
        let control_plane = TcpListener::bind("127.0.0.1:0").unwrap();
        control_plane.set_nonblocking(true).unwrap();
        let flags = Flags {
            name: Some("planner".into()),
            control_plane: Some(control_plane.local_addr().unwrap().to_string().as_str().into()),
            agent: Some("127.0.0.1:2".into()),
            data: Some(dir.path().join("data")),
            root: Some(dir.path().join("app")),
            code: vec!["main.py".into()],
            ..Flags::default()
        };
        let config = Arc::new(flags.resolve(Said::default()).unwrap());
        let svid = SvidSource::default();
        let alarm = Alarm::new(config.clone(), svid.clone(), Suspension::open(&config.data));
        alarm.expect(measure(&config.measured).unwrap());
        let trust = TrustState::new("aip.internal".parse().unwrap(), Vec::new()).shared();
        let (send, origins) = mpsc::channel(1);
        let ready = Readiness::new(&["identity"]);
        Self {
            keeper: Keeper::new(config, svid, trust, None, ready, send, alarm.clone()),
            alarm,
            control_plane,
            dir,
            _origins: origins,
        }
    }
}

/// Nothing is asked for what was not approved: the control plane does not hear of the renewal at all.
#[tokio::test]
async fn a_renewal_measures_again_and_a_change_that_nobody_saw_is_drift() {
    let Unwatched {
        keeper,
        alarm,
        control_plane,
        dir,
        _origins,
    } = Unwatched::new();
    fs::write(dir.path().join("app/main.py"), "edited").unwrap();
    let kept = tokio::spawn(keeper.keep());
    let suspension = alarm.suspension();
    let found = tokio::time::timeout(DEADLINE, suspension.settled()).await;
    found.expect("the renewal finds it");
    let marker = suspension.marker().unwrap();
    assert_eq!(marker.paths, ["main.py"]);
    assert!(marker.found.is_some_and(|found| found != marker.was));
    assert!(Suspension::open(&dir.path().join("data")).is_on(), "it is on disk");
    tokio::time::timeout(DEADLINE, kept)
        .await
        .expect("nothing is renewed any more")
        .unwrap();
    assert_eq!(control_plane.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// The counterpart: without a change the same renewal does ask.
#[tokio::test]
async fn a_renewal_of_what_was_approved_asks_the_control_plane() {
    let unwatched = Unwatched::new();
    let kept = tokio::spawn(unwatched.keeper.keep());
    let begun = std::time::Instant::now();
    while unwatched.control_plane.accept().is_err() {
        assert!(begun.elapsed() < DEADLINE, "nobody asks");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!unwatched.alarm.suspension().is_on());
    kept.abort();
}
