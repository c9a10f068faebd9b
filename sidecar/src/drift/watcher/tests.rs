//! What counts as drift and what doesn't, on a real file system with the kernel's own notices.

use std::fs::{self, File, FileTimes};
use std::future::ready;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aip_api::evidence::MAX_FILES;
use aip_runtime::settings::Said;
use aip_runtime::svid::SvidSource;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;
use crate::config::{Config, Flags};
use crate::drift::{Marker, Suspension};

/// How long a drift may take to be seen here: machines are slow at times. The target is 2 s.
const DEADLINE: Duration = Duration::from_secs(30);
/// What notices of the kernel are kept until they are read.
const QUEUE: &str = "/proc/sys/fs/inotify/max_queued_events";

/// A watched tree.
struct Tree {
    dir: tempfile::TempDir,
    alarm: Alarm,
    config: Arc<Config>,
}

impl Tree {
    /// `app/main.py`, `app/other.py`, `app/src/{a,b}.py`, and `app/lib`, a link to `app/v1` with `x.py`.
    fn new(code: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let app = dir.path().join("app");
        for inner in ["src", "v1", "v2"] {
            fs::create_dir_all(app.join(inner)).unwrap();
        }
        for file in ["main.py", "other.py", "src/a.py", "src/b.py", "v1/x.py", "v2/x.py"] {
            fs::write(app.join(file), "as approved").unwrap();
        }
        symlink("v1", app.join("lib")).unwrap();
        let flags = Flags {
            name: Some("planner".into()),
            control_plane: Some("127.0.0.1:1".into()),
            agent: Some("127.0.0.1:2".into()),
            data: Some(dir.path().join("data")),
            root: Some(app),
            code: code.iter().map(|s| (*s).to_owned()).collect(),
            ..Flags::default()
        };
        fs::create_dir_all(dir.path().join("data")).unwrap();
        let config = Arc::new(flags.resolve(Said::default()).unwrap());
        let suspension = Suspension::open(&config.data);
        let alarm = Alarm::new(config.clone(), SvidSource::default(), suspension);
        Self { dir, alarm, config }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("app").join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.at(path), text).unwrap();
    }

    fn watcher(&self) -> (Watcher, Readiness) {
        let ready = Readiness::new(&[GATE]);
        let declared = self.config.measured.clone();
        (Watcher::new(self.alarm.clone(), declared, ready.clone()), ready)
    }

    /// Watches, from when this returns.
    async fn watched(self) -> Self {
        self.alarm.expect(measure(&self.config.measured).unwrap());
        let (watcher, ready) = self.watcher();
        tokio::spawn(watcher.run());
        tokio::time::timeout(DEADLINE, ready.ready()).await.unwrap();
        assert!(!self.alarm.suspension().is_on());
        self
    }

    /// The drift that comes of what was done.
    async fn drifts(&self) -> Arc<Marker> {
        let mut changed = self.alarm.suspension().subscribe();
        let seen = tokio::time::timeout(DEADLINE, changed.wait_for(|on| *on)).await;
        seen.expect("it drifts").unwrap();
        self.alarm.suspension().settled().await;
        assert!(Suspension::open(&self.config.data).is_on(), "it is on disk");
        self.alarm.suspension().marker().unwrap()
    }

    /// That nothing before this was drift: the first one names another file.
    async fn drifts_only_now(&self) {
        self.write("other.py", "edited");
        assert_eq!(self.drifts().await.paths, ["other.py"]);
    }
}

async fn after(code: &[&str], change: impl FnOnce(&Tree)) -> Arc<Marker> {
    let tree = Tree::new(code).watched().await;
    change(&tree);
    tree.drifts().await
}

#[tokio::test]
async fn an_edit_is_drift_and_says_what_was_found() {
    let marker = after(&["main.py"], |tree| tree.write("main.py", "edited")).await;
    assert_eq!(marker.paths, ["main.py"]);
    assert!(marker.found.is_some_and(|found| found != marker.was) && marker.measurement.is_some());
    assert!(!marker.reported);
}

/// No other task runs in between: nobody can have looked while it was edited.
#[tokio::test]
async fn an_edit_that_is_undone_before_anybody_looks_is_drift() {
    let marker = after(&["main.py"], |tree| {
        tree.write("main.py", "edited");
        tree.write("main.py", "as approved");
    })
    .await;
    assert_eq!(
        (&marker.paths[..], marker.found),
        (&["main.py".to_owned()][..], Some(marker.was))
    );
}

#[tokio::test]
async fn a_write_by_another_name_of_the_file_is_drift() {
    let tree = Tree::new(&["main.py"]);
    fs::hard_link(tree.at("main.py"), tree.dir.path().join("elsewhere")).unwrap();
    let tree = tree.watched().await;
    fs::write(tree.dir.path().join("elsewhere"), "edited").unwrap();
    fs::write(tree.dir.path().join("elsewhere"), "as approved").unwrap();
    assert_eq!(tree.drifts().await.paths, ["main.py"]);
}

#[tokio::test]
async fn what_editors_and_deployments_do_is_drift() {
    // Written beside and renamed over, of the same content: what lay there in between is not known.
    let renamed = after(&["main.py"], |tree| {
        tree.write("new", "as approved");
        fs::rename(tree.at("new"), tree.at("main.py")).unwrap();
    });
    assert_eq!(renamed.await.paths, ["main.py"]);
    let deleted = after(&["main.py", "src/**"], |tree| {
        fs::remove_file(tree.at("src/a.py")).unwrap()
    })
    .await;
    assert!(deleted.paths.contains(&"src/a.py".to_owned()), "{deleted:?}");
    let gone = after(&["main.py"], |tree| fs::remove_file(tree.at("main.py")).unwrap()).await;
    assert_eq!((&gone.paths[..], gone.found), (&["main.py".to_owned()][..], None));
    let executable = after(&["main.py"], |tree| {
        fs::set_permissions(tree.at("main.py"), fs::Permissions::from_mode(0o755)).unwrap();
    });
    assert_eq!(executable.await.paths, ["main.py"]);
}

#[tokio::test]
async fn a_directory_or_a_link_that_is_swapped_is_drift() {
    let directory = after(&["src/a.py"], |tree| {
        fs::rename(tree.at("src"), tree.at("old")).unwrap();
        fs::create_dir(tree.at("src")).unwrap();
        tree.write("src/a.py", "as approved");
    });
    assert!(!directory.await.paths.is_empty());
    // The file behind is of the same content: what is loaded next may not be.
    let link = after(&["lib/x.py"], |tree| {
        symlink("v2", tree.at("next")).unwrap();
        fs::rename(tree.at("next"), tree.at("lib")).unwrap();
    });
    assert_eq!(link.await.paths, ["lib/x.py"]);
    let and_back = after(&["lib/x.py"], |tree| {
        for target in ["v2", "v1"] {
            fs::remove_file(tree.at("lib")).unwrap();
            symlink(target, tree.at("lib")).unwrap();
        }
    });
    assert_eq!(and_back.await.paths, ["lib/x.py"]);
    let behind = after(&["lib/x.py"], |tree| tree.write("v1/x.py", "edited"));
    assert_eq!(behind.await.paths, ["lib/x.py"]);
    let root = after(&["main.py"], |tree| {
        fs::rename(tree.dir.path().join("app"), tree.dir.path().join("away")).unwrap();
    });
    assert!(!root.await.paths.is_empty());
}

#[tokio::test]
async fn what_a_glob_covers_is_drift_when_it_comes_also_for_a_moment() {
    let moment = after(&["src/**"], |tree| {
        tree.write("src/evil.py", "x");
        fs::remove_file(tree.at("src/evil.py")).unwrap();
    });
    assert_eq!(moment.await.paths, ["src/evil.py"]);
    let below = after(&["src/**"], |tree| {
        fs::create_dir(tree.at("src/deep")).unwrap();
        tree.write("src/deep/evil.py", "x");
    });
    assert_eq!(below.await.paths, ["src/deep/evil.py"]);
}

#[tokio::test]
async fn a_directory_that_comes_is_watched_too() {
    let tree = Tree::new(&["src/**", "other.py"]).watched().await;
    fs::create_dir(tree.at("src/deep")).unwrap();
    // An empty directory holds no code; once it is watched, what comes and goes there is heard.
    let (watcher, _) = tree.watcher();
    let deep = fs::canonicalize(tree.at("src/deep")).unwrap();
    let declared = watcher.declared.clone();
    let interest = spawn_blocking(move || Interest::of(&declared)).await.unwrap().unwrap();
    assert!(interest.walked.contains_key(&deep));
    tree.write("src/deep/new.py", "x");
    assert_eq!(tree.drifts().await.paths, ["src/deep/new.py"]);
}

#[tokio::test]
async fn reading_touching_and_what_is_not_measured_are_no_drift() {
    let tree = Tree::new(&["main.py", "other.py", "src/*.py"]).watched().await;
    fs::read(tree.at("main.py")).unwrap();
    let file = File::options().write(true).open(tree.at("main.py")).unwrap();
    // Both times, as touch(1) does: of the modification time alone the kernel gives the notice of a write.
    let now = SystemTime::now();
    file.set_times(FileTimes::new().set_accessed(now).set_modified(now))
        .unwrap();
    drop(file);
    fs::set_permissions(tree.at("main.py"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(tree.at("main.py"), tree.at("another-name")).unwrap();
    tree.write("src/notes.txt", "not covered");
    fs::create_dir(tree.at("src/below")).unwrap();
    tree.write("src/below/x.py", "not covered either");
    tree.drifts_only_now().await;
}

/// Fills the queue of notices with names that nobody cares for.
fn flood(tree: &Tree) {
    let queue: usize = fs::read_to_string(QUEUE).unwrap().trim().parse().unwrap();
    let noise = tree.at("src/noise");
    for _ in 0..=queue / 2 {
        fs::write(&noise, "").unwrap();
        fs::remove_file(&noise).unwrap();
    }
}

#[tokio::test]
async fn an_edit_behind_a_flood_of_notices_is_drift() {
    let marker = after(&["src/*.py"], |tree| {
        flood(tree);
        tree.write("src/a.py", "edited");
        tree.write("src/a.py", "as approved");
    })
    .await;
    assert!(marker.paths[0].ends_with("src/a.py"), "{marker:?}");
    assert_eq!(
        marker.found,
        Some(marker.was),
        "what lies there is equal; what lay there is not known"
    );
}

#[tokio::test]
async fn a_flood_of_notices_alone_is_no_drift() {
    let tree = Tree::new(&["src/*.py", "other.py"]).watched().await;
    flood(&tree);
    tree.drifts_only_now().await;
}

#[tokio::test]
async fn where_there_are_no_notices_looking_finds_what_was_undone() {
    let tree = Tree::new(&["main.py", "src/*.py"]);
    tree.alarm.expect(measure(&tree.config.measured).unwrap());
    let (watcher, _) = tree.watcher();
    let stamps = Stamps::take(&watcher.declared).unwrap();
    assert_eq!(watcher.touched(&stamps).await, None);
    tree.write("main.py", "edited");
    tree.write("main.py", "as approved");
    let touched = watcher.touched(&stamps).await.unwrap();
    assert!(touched.len() == 1 && touched[0].ends_with("main.py"), "{touched:?}");
    let stamps = Stamps::take(&watcher.declared).unwrap();
    tree.write("src/new.py", "x");
    assert!(watcher.touched(&stamps).await.unwrap()[0].ends_with("src/new.py"));
}

fn short_of_files() -> MeasureError {
    MeasureError::Io {
        path: "main.py".into(),
        source: Errno::MFILE.into(),
    }
}

/// Looking waits until there are files again; hearing does not.
#[tokio::test]
async fn an_edit_during_a_shortage_is_drift_at_once() {
    let tree = Tree::new(&["main.py"]);
    let (watcher, _) = tree.watcher();
    let mut eyes = watcher.open_eyes().await;
    let mut looks = 0;
    let short = || {
        looks += 1;
        if looks == 3 {
            tree.write("main.py", "edited");
            tree.write("main.py", "as approved");
        }
        ready(Err::<(), _>(short_of_files()))
    };
    let begun = Instant::now();
    let heard = patiently(short, &mut eyes, &mut Seen::default()).await;
    assert_eq!(heard.map(|_| ()), Err(vec!["main.py".to_owned()]));
    assert!(begun.elapsed() < SHORTAGE, "it waited for the end of the shortage");
}

/// What is no drift by itself is seen to after the shortage; and one that does not end is an error in the end.
#[tokio::test]
async fn what_is_heard_during_a_shortage_is_not_forgotten() {
    let tree = Tree::new(&["main.py", "src/**"]);
    let (watcher, _) = tree.watcher();
    let (mut eyes, mut heard) = (watcher.open_eyes().await, Seen::default());
    let mut looks = 0;
    let short_once = || {
        looks += 1;
        if looks > 1 {
            return ready(Ok(()));
        }
        fs::set_permissions(tree.at("main.py"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::create_dir(tree.at("src/deep")).unwrap();
        ready(Err(short_of_files()))
    };
    assert!(patiently(short_once, &mut eyes, &mut heard).await.unwrap().is_ok());
    assert!(heard.look && heard.again && heard.changed.is_empty(), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shortage_that_does_not_end_is_an_error() {
    let mut looks = 0;
    let short = || {
        looks += 1;
        ready(Err::<(), _>(short_of_files()))
    };
    let looked = patiently(short, &mut Eyes::Looking, &mut Seen::default()).await;
    assert!(looked.unwrap().unwrap_err().is_shortage());
    assert!(looks > 30, "{looks}");
}

/// The variable by which a test of this file is run in a process of its own, whose bounds are nobody else's.
const ALONE: &str = "AIP_TEST_ALONE";

/// No file can be opened for a while, as where an agent opens as many as its user may: nothing changed, and nothing drifts.
#[test]
fn a_process_that_has_no_file_left_is_no_drift() {
    let name = "drift::watcher::tests::a_process_that_has_no_file_left_is_no_drift";
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        return runtime.unwrap().block_on(without_files());
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1");
    let output = alone.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

async fn without_files() {
    let tree = Tree::new(&["main.py", "src/*.py"]);
    tree.alarm.expect(measure(&tree.config.measured).unwrap());
    let (watcher, _) = tree.watcher();
    let stamps = Stamps::take(&watcher.declared).unwrap();
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..before
    };
    setrlimit(Resource::Nofile, none).unwrap();
    let looked = look(watcher.declared.clone()).await.map(|_| ());
    assert!(looked.as_ref().is_err_and(MeasureError::is_shortage), "{looked:?}");
    // It waits, and does not say that something was touched.
    let touched = tokio::time::timeout(2 * LOOK_EVERY, watcher.touched(&stamps)).await;
    assert!(touched.is_err(), "{touched:?}");
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(watcher.touched(&stamps).await, None);
    assert!(look(watcher.declared.clone()).await.is_ok());
}

#[tokio::test]
async fn as_many_files_as_may_be_are_watched_and_one_more_is_drift() {
    let tree = Tree::new(&["many/**"]);
    fs::create_dir(tree.at("many")).unwrap();
    for i in 0..MAX_FILES {
        File::create(tree.at(&format!("many/{i:05}"))).unwrap();
    }
    let tree = tree.watched().await;
    tree.write("many/one-more", "x");
    let marker = tree.drifts().await;
    assert_eq!(marker.found, None, "more than is measured");
    assert!(!marker.paths.is_empty());
}

#[tokio::test]
async fn what_changed_before_the_watch_stood_is_found_when_it_does() {
    let tree = Tree::new(&["main.py"]);
    tree.alarm.expect(measure(&tree.config.measured).unwrap());
    tree.write("main.py", "edited");
    let (watcher, ready) = tree.watcher();
    tokio::spawn(watcher.run());
    let marker = tree.drifts().await;
    assert_eq!(marker.paths, ["main.py"]);
    assert!(!ready.is_ready());
}

/// A disk that was full when it drifted: the marker is there soon after there is room, though nobody else asks for it.
#[tokio::test]
async fn a_marker_that_the_disk_did_not_take_is_written_when_it_does() {
    let tree = Tree::new(&["main.py"]);
    let away = tree.dir.path().join("away");
    fs::rename(&tree.config.data, &away).unwrap();
    tree.alarm.expect(measure(&tree.config.measured).unwrap());
    tree.alarm.raise(vec!["main.py".into()]).await;
    assert!(tree.alarm.suspension().is_on());
    fs::rename(&away, &tree.config.data).unwrap();
    assert!(!Suspension::open(&tree.config.data).is_on());
    let written = async {
        while !Suspension::open(&tree.config.data).is_on() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, written).await.expect("it is written");
}

#[test]
fn a_path_that_is_no_directory_any_more_ends_nothing() {
    assert!(Interest::of(&Tree::new(&["absent.py"]).config.measured).is_err());
    assert!(Path::new(QUEUE).exists());
}
