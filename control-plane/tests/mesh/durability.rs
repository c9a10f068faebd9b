//! What survives: restarts, kills, and what must not stand on disk.

use std::path::Path;

use aip_api::resource::{KeyPurpose, MeshMode};
use serde_json::{Value, json};

use crate::support::process::{command, ended};
use crate::support::{Admin, Mesh, Process, settings};

#[tokio::test]
async fn a_killed_control_plane_comes_back_with_everything() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mesh = Mesh::start(settings(&data)).await;
    let sidecar = mesh.joined("planner").await;
    let before = mesh.admin.get("/v1/mesh").await;
    mesh.plane.kill().await;

    let mut mesh = Mesh::start(settings(&data)).await;
    let after = mesh.admin.get("/v1/mesh").await;
    assert_eq!(
        (&before["root"], &before["revision"]),
        (&after["root"], &after["revision"])
    );
    assert_eq!(
        mesh.admin.get("/v1/agents/planner").await["resource"]["name"],
        "planner"
    );
    let mut sidecar = crate::support::Sidecar {
        mesh: mesh.plane.run.mesh,
        ..sidecar
    };
    let tls = aip_runtime::tls::pinned_client(mesh.plane.run.root).unwrap();
    let channel = aip_runtime::grpc::channel(sidecar.mesh, tls).await.unwrap();
    sidecar.identity = aip_runtime::grpc::identity_client::IdentityClient::new(channel);
    sidecar.renew(b"code").await.unwrap();
    let mut stream = sidecar.stream().await;
    assert!(!stream.synced().await.is_empty());
    mesh.dir = Some(dir);
}

#[tokio::test]
async fn a_copy_of_the_files_taken_in_the_middle_of_writing_opens() {
    let mesh = Mesh::dev().await;
    let copies = tempfile::tempdir().unwrap();
    let key = mesh.dir.as_ref().unwrap().path().join("sealing.key");
    for i in 0..4 {
        let writer = mesh.admin.clone();
        let writing = tokio::spawn(async move {
            for j in 0..8 {
                writer
                    .ok("POST", "/v1/agents", json!({"name": format!("a{i}-{j}")}))
                    .await;
            }
        });
        mesh.admin
            .ok("POST", "/v1/agents", json!({"name": format!("sure{i}")}))
            .await;
        let copy = copies.path().join(format!("c{i}"));
        std::fs::create_dir(&copy).unwrap();
        for file in ["store.redb", "admin.jwt"] {
            std::fs::copy(mesh.data.join(file), copy.join(file)).unwrap();
        }
        writing.await.unwrap();
        // What a crash leaves is what the kernel has; a copy that was torn in the middle may be older, never broken.
        let mut again = settings(&copy);
        again.key_file = Some(key.clone());
        match aip_control_plane::server::ControlPlane::start(again).await {
            Ok(plane) => {
                let admin = Admin::new(plane.run.admin, mesh.admin.token.clone());
                admin.ok("GET", "/v1/agents/sure0", Value::Null).await;
                plane.shutdown().await;
            }
            Err(error) => panic!("copy {i}: {error}"),
        }
    }
}

fn contains(path: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(path).unwrap().any(|entry| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        bytes.windows(needle.len()).any(|w| w == needle)
    })
}

#[tokio::test]
async fn no_secret_stands_on_disk_in_the_clear() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    // The search finds what is there ...
    assert!(contains(&mesh.data, b"aip.internal"));
    let signer = mesh.plane.api.ca.signer(KeyPurpose::Config);
    let certificate = mesh.plane.api.ca.key_certificates();
    assert!(contains(&mesh.data, signer.kid().as_bytes()) && !certificate.is_empty());
    // ... and no secret of a token.
    let secret = token.split('.').nth(2).unwrap();
    assert!(!contains(&mesh.data, secret.as_bytes()));
    // PKCS#8 of P-256 and Ed25519 begin with these; in hex they would too.
    let p256: &[u8] = &[
        0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48,
    ];
    let ed25519: &[u8] = &[
        0x02, 0x01, 0x01, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ];
    for needle in [p256, ed25519] {
        assert!(!contains(&mesh.data, needle));
        assert!(!contains(&mesh.data, hex::encode(needle).as_bytes()));
    }
    use std::os::unix::fs::PermissionsExt as _;
    for file in ["admin.jwt", "run.json", "store.redb"] {
        let mode = std::fs::metadata(mesh.data.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn what_can_not_be_is_refused_at_the_start() {
    use aip_control_plane::server::ControlPlane;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let reason = async |change: &dyn Fn(&mut aip_control_plane::settings::Settings)| {
        let mut settings = settings(&data);
        change(&mut settings);
        ControlPlane::start(settings).await.map(|_| ()).unwrap_err().reason()
    };
    assert_eq!(reason(&|s| s.mode = Some(MeshMode::Prod)).await, "sealing_key_required");
    let plane = ControlPlane::start(settings(&data)).await.unwrap();
    assert_eq!(reason(&|_| {}).await, "data_dir_in_use");
    plane.shutdown().await;
    assert_eq!(reason(&|s| s.mode = Some(MeshMode::Prod)).await, "immutable");
    assert_eq!(
        reason(&|s| s.trust_domain = Some("other.internal".parse().unwrap())).await,
        "immutable"
    );
    std::fs::write(dir.path().join("another.key"), "ab".repeat(32)).unwrap();
    assert_eq!(
        reason(&|s| s.key_file = Some(dir.path().join("another.key"))).await,
        "ca_sealed"
    );
    ControlPlane::start(settings(&data)).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_half_made_mesh() {
    use aip_control_plane::server::ControlPlane;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let reason = async |change: &dyn Fn(&mut aip_control_plane::settings::Settings)| {
        let mut settings = settings(&data);
        change(&mut settings);
        ControlPlane::start(settings).await.map(|_| ()).unwrap_err().reason()
    };
    assert_eq!(reason(&|s| s.mesh_listen = address).await, "port_taken");
    assert_eq!(reason(&|s| s.admin_listen = address).await, "port_taken");
    assert!(!data.exists(), "a port that is taken is known before anything is made");

    let files = || -> Vec<_> {
        let all = std::fs::read_dir(&data)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        all.filter(|name| name != ".lock").collect()
    };
    let long = dir.path().join("s".repeat(120));
    assert_eq!(
        reason(&|s| s.admin_socket = Some(long.clone())).await,
        "socket_path_too_long"
    );
    assert_eq!(files(), Vec::<String>::new());
    assert_eq!(reason(&|s| s.mode = Some(MeshMode::Prod)).await, "sealing_key_required");
    let prod = |s: &mut aip_control_plane::settings::Settings| {
        s.mode = Some(MeshMode::Prod);
        s.key_file = Some(data.join("beside.key"));
    };
    assert_eq!(reason(&prod).await, "sealing_key_beside_data");
    assert_eq!(files(), Vec::<String>::new());

    ControlPlane::start(settings(&data)).await.unwrap().shutdown().await;
    std::fs::rename(data.join("data.key"), dir.path().join("kept.key")).unwrap();
    assert_eq!(reason(&|_| {}).await, "sealing_key");
    assert!(
        !data.join("data.key").exists(),
        "a fresh key would open nothing, and take the place of the right one"
    );
    std::fs::rename(dir.path().join("kept.key"), data.join("data.key")).unwrap();
    ControlPlane::start(settings(&data)).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn a_failed_start_says_each_cause_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let failed = ended(command(&file.join("data"), &[])).await;
    let text = String::from_utf8(failed.stderr).unwrap();
    assert!(!failed.status.success());
    assert_eq!(text.matches("Not a directory").count(), 1, "{text}");
}

#[tokio::test]
async fn the_process_survives_sigkill_and_ends_well_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let first = Process::start(&data, &[]).await;
    first.admin().ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let socket = first.socket();
    drop(first);
    assert!(socket.exists(), "what SIGKILL leaves");
    let mut second = Process::start(&data, &[]).await;
    second.admin().ok("GET", "/v1/agents/planner", Value::Null).await;
    assert_eq!(second.socket(), socket);
    let over = Admin::over(&socket, second.token());
    over.ok("GET", "/v1/agents/planner", Value::Null).await;
    assert!(second.end().await.success());
    assert!(!socket.exists(), "a clean stop takes its socket along");
}
