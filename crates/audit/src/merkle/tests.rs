use aip_api::Digest;
use ct_merkle::ConsistencyProof;
use ct_merkle::InclusionProof;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;
use sha2::Sha256;

use super::*;

/// RFC 6962 section 2.1, as it is written.
fn naive(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => Digest::sha256(b""),
        [one] => *one,
        many => {
            let (left, right) = many.split_at(many.len().next_power_of_two() / 2);
            node(&naive(left), &naive(right))
        }
    }
}

fn leaves(count: u64) -> Vec<Digest> {
    (0..count).map(|n| leaf(&n.to_be_bytes())).collect()
}

fn oracle(count: u64) -> MemoryBackedTree<Sha256, Vec<u8>> {
    let mut tree = MemoryBackedTree::new();
    (0..count).for_each(|n| tree.push(n.to_be_bytes().to_vec()));
    tree
}

fn flat(proof: &[Digest]) -> Vec<u8> {
    proof.iter().flat_map(|d| d.as_bytes().to_vec()).collect()
}

#[test]
fn a_tree_that_grows_has_the_root_of_the_definition() {
    let all = leaves(130);
    let mut tree = Tree::default();
    for size in 0..=130 {
        assert_eq!(tree.root(), naive(&all[..size]), "{size}");
        let same = Tree::from_peaks(tree.size(), tree.peaks().to_vec()).unwrap();
        assert_eq!(same.root(), tree.root());
        if size < 130 {
            tree.append(all[size]);
        }
    }
    assert!(Tree::from_peaks(3, vec![all[0]]).is_none());
}

#[test]
fn every_proof_of_small_trees_is_the_oracles_and_no_other_is_taken() {
    let all: Levels = leaves(20).into_iter().collect();
    for size in 1..=20_u64 {
        let tree = oracle(size);
        let root = all.root(size).unwrap();
        assert_eq!(tree.root().as_bytes().as_slice(), root.as_bytes());
        for index in 0..size {
            let proof = all.inclusion(index, size).unwrap();
            assert_eq!(flat(&proof), tree.prove_inclusion(index as usize).as_bytes());
            let at = all.leaf(index).unwrap();
            assert_eq!(verify_inclusion(&at, index, size, &proof, &root), Ok(()));
            for (wrong, other) in [(index + 1, size), (index, size + 1)] {
                let leaf = leaf(&wrong.to_be_bytes());
                let taken = verify_inclusion(&leaf, index, other, &proof, &root).is_ok();
                assert!(
                    !taken || (wrong == index && shape(index, size) == shape(index, other)),
                    "{wrong} {other}"
                );
            }
            let mut longer = proof.clone();
            longer.push(at);
            assert!(verify_inclusion(&at, index, size, &longer, &root).is_err());
        }
        for old in 1..=size {
            let proof = all.consistency(old, size).unwrap();
            let theirs = tree.prove_consistency((size - old) as usize);
            assert_eq!(flat(&proof), theirs.as_bytes(), "{old} {size}");
            let before = all.root(old).unwrap();
            assert_eq!(verify_consistency(old, size, &before, &root, &proof), Ok(()));
            let forged = Digest::sha256(b"another history");
            assert!(verify_consistency(old, size, &forged, &root, &proof).is_err());
            assert!(verify_consistency(old, size, &before, &forged, &proof).is_err());
        }
    }
    assert_eq!(all.inclusion(20, 20), Err(ProofError::Range));
    assert_eq!(all.consistency(3, 21), Err(ProofError::Range));
    assert_eq!(all.consistency(4, 3), Err(ProofError::Range));
}

/// Which side the siblings of a leaf are on: trees of which this is equal can't be told apart by one path.
fn shape(index: u64, size: u64) -> Vec<bool> {
    let (mut from, mut to, mut sides) = (0, size, Vec::new());
    while to - from > 1 {
        let split = from + ((to - from).next_power_of_two() / 2);
        sides.push(index < split);
        if index < split { to = split } else { from = split }
    }
    sides
}

proptest! {
    #[test]
    fn proofs_of_any_tree_are_taken_by_the_oracle_and_the_oracles_by_us(
        size in 1_u64..400, a in any::<u64>(), b in any::<u64>(), flip in any::<usize>()
    ) {
        let (index, old) = (a % size, 1 + b % size);
        let all = leaves(size);
        let theirs = oracle(size);
        let root = naive(&all);
        prop_assert_eq!(super::root(&all), root);
        let proof = inclusion(&all, index, size).unwrap();
        prop_assert!(verify_inclusion(&all[index as usize], index, size, &proof, &root).is_ok());
        let as_theirs = InclusionProof::<Sha256>::from_bytes(flat(&proof));
        prop_assert!(theirs.root().verify_inclusion(&index.to_be_bytes().to_vec(), index, &as_theirs).is_ok());
        let along = consistency(&all, old, size).unwrap();
        let before = naive(&all[..old as usize]);
        prop_assert!(verify_consistency(old, size, &before, &root, &along).is_ok());
        if old < size {
            let as_theirs = ConsistencyProof::<Sha256>::try_from_bytes(flat(&along)).unwrap();
            prop_assert!(theirs.root().verify_consistency(&oracle(old).root(), &as_theirs).is_ok());
        }
        // One bit anywhere in a proof, and it proves nothing.
        for mut bent in [proof, along] {
            if bent.is_empty() { continue; }
            let at = flip % bent.len();
            let mut bytes = *bent[at].as_bytes();
            bytes[flip % 32] ^= 1;
            bent[at] = Digest::from_bytes(bytes);
            prop_assert!(verify_inclusion(&all[index as usize], index, size, &bent, &root).is_err());
            prop_assert!(verify_consistency(old, size, &before, &root, &bent).is_err());
        }
    }
}
