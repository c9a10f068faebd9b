//! `docs/cli.md` is made from the command itself.
