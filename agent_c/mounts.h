/* mount(2) and its successors, as steps of the child; and what has to exist for them.
 *
 * Where that is, places.h says. Mounts are moved by fds (open_tree(2), fsmount(2), move_mount(2)) onto an fd, or onto what has just
 * been made in a directory that is held: between the look-up and the mount nothing can be exchanged for a way out. */
#ifndef LINX_MOUNTS_H
#define LINX_MOUNTS_H

#include "steps.h"

long mount_private(const struct step *step, struct step_room *room);
long mount_keep_terminal(const struct step *step, struct step_room *room);
long mount_name_terminal(const struct step *step, struct step_room *room);
long mount_root(const struct step *step, struct step_room *room);
long mount_bind(const struct step *step, struct step_room *room);
long mount_new(const struct step *step, struct step_room *room);
long mount_remount(const struct step *step, struct step_room *room);
long mount_move(const struct step *step, struct step_room *room);
long mount_umount(const struct step *step, struct step_room *room);
long mount_protect(const struct step *step, struct step_room *room);
long mount_mask(const struct step *step, struct step_room *room);
long mount_propagation(const struct step *step, struct step_room *room);
long mount_make_dir(const struct step *step, struct step_room *room);
long mount_make_file(const struct step *step, struct step_room *room);
long mount_make_symlink(const struct step *step, struct step_room *room);
long mount_pivot_root(const struct step *step, struct step_room *room);

/* After the last step of several: what would keep a mount busy is let go. */
void mounts_forget(struct step_room *room);

#endif
