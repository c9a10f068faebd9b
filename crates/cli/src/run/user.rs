//! The user that the command runs as: another than the sidecar's, so that it can't read the sidecar's key.

use std::str::FromStr;

/// A user and its main group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl FromStr for User {
    type Err = String;

    /// A name of `/etc/passwd`, a number, or two numbers `UID:GID`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((uid, gid)) = text.split_once(':') {
            return match (uid.parse(), gid.parse()) {
                (Ok(uid), Ok(gid)) => Ok(Self { uid, gid }),
                _ => Err("UID:GID are two numbers".into()),
            };
        }
        let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        match (listed(&known, text), text.parse()) {
            (Some(user), _) => Ok(user),
            (None, Ok(uid)) => Ok(Self { uid, gid: uid }),
            (None, Err(_)) => Err("no such user".into()),
        }
    }
}

/// `name:password:uid:gid:…`, by name or by number.
fn listed(passwd: &str, wanted: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (uid, gid) = (fields.nth(1)?, fields.next()?);
        (name == wanted || uid == wanted).then_some(())?;
        Some(User {
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nagent:x:1001:1002::/:/bin/false\n";
        let agent = User { uid: 1001, gid: 1002 };
        assert_eq!(
            (listed(passwd, "agent"), listed(passwd, "1001")),
            (Some(agent), Some(agent))
        );
        assert_eq!(listed(passwd, "nobody-here"), None);
        assert_eq!("7:8".parse(), Ok(User { uid: 7, gid: 8 }));
        assert!("no such user".parse::<User>().is_err() && "a:b".parse::<User>().is_err());
    }
}
