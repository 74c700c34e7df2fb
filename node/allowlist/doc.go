// Package allowlist holds the allow-list of an overlay: the signed document that says which peers may be in it.
//
// An overlay has no list until somebody who holds its root key makes an admin key ([NewKey]), which the root key vouches for, and with it
// the first list ([Key.Found]). From then on whoever is not on the list is kept out. Each change ([Key.Edit]) makes a list with the next
// number; of two lists the one with the larger number counts ([List.Newer]), and whoever knows a list never goes back to an older one.
// A new admin key, for one that was lost, has a larger number than the last, which comes before that of the list.
//
// One directory holds the admin key. Two that change the list at the same time would make two lists of one number; all peers then end up
// with the same one of them, and the other's change is lost.
//
// # Invitations
//
// An entry may be an invitation: a peer id that may enrol a member until it expires and may do nothing else. Its key is in the token that
// is handed on, unless the invitation is for one peer id, which then is the entry itself. Who enrols by it names the id that is to be the
// member and proves to have its key ([EnrolRequest]). An invitation that is good once remembers whom it has enrolled, so that who was
// interrupted after that may ask again and is told yes.
package allowlist

//go:generate go generate ./pb
