// Package storetest is the contract of [subnet.Store] as tests. Every store
// passes the same suite, and so a test of the domain that runs on memstore says
// something about etcd.
//
//	Run --> case --> Harness.Open (the store under test, as often as hosts)
//	          |
//	          +----> Operator (others' hands: etcdctl, flannel, a disk that dies)
//
// That the suite notices what it should is tested as well: stores broken on
// purpose must fail it.
package storetest
