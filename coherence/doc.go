// Package coherence is objects that the nodes of an overlay share through cached copies, and that stay coherent. Applications import it.
//
// So far it holds only [Var], a typed variable kept in a shared object. How a node's threads get at an object is in
// coherence/access, the protocol between nodes in coherence/manager, coherence/cachedcopy and coherence/appmanager.
package coherence
