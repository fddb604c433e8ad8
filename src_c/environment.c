/* The functions of bncore.h that give hosts what float_env.h has. */
#include <string.h>

#include "float_env.h"
#include "include/bncore.h"

_Static_assert(sizeof(bncore_float_env) <= sizeof(bncore_environment),
               "bncore_environment has room for what is saved");

void bncore_environment_enter(bncore_environment *own)
{
    const bncore_float_env saved = bncore_float_env_enter();
    memcpy(own, &saved, sizeof saved);
}

void bncore_environment_leave(const bncore_environment *own)
{
    bncore_float_env saved;
    memcpy(&saved, own, sizeof saved);
    bncore_float_env_leave(&saved);
}
