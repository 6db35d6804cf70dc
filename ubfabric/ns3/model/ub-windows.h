// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_WINDOWS_H
#define UB_WINDOWS_H

#include "ub-endpoint-process.h"
#include "ub-partition.h"
#include "ub-plane-parts.h"
#include "ub-plane.h"
#include "ub-workers.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Endpoints and planes that run window after window at the same time, on several threads.
 *
 * Time is cut into windows, WINDOWS of which are as long as the lookahead. A plane runs a window
 * when the endpoints have: it then has all that they send in it. What arrives in a window moves
 * no endpoint before the lookahead is over, so the endpoints run a window when all planes have
 * run the one WINDOWS before. Between these bounds nobody waits for anybody: a plane that has
 * little to do in a window goes on with the next. Parts of one plane run a window step by step,
 * see UbPlaneParts.
 *
 * What the endpoints take over, and when, follows from the number of the window, not from the
 * threads; so the results are the same for any number of them.
 */
class UbWindows
{
  public:
    /// Windows as long as the lookahead, and so the most that are at work at one time.
    static constexpr uint32_t WINDOWS = 4;

    /**
     * @param [in] endpoints The endpoints.
     * @param [in] planes The planes.
     * @param [in] workers Threads, with one task for the endpoints and one for each part of a
     * plane.
     * @param [in] take Has the endpoints take over what arrived in a plane, and empties it.
     */
    UbWindows(UbEndpointProcess& endpoints,
              std::vector<std::unique_ptr<UbPlaneParts>>& planes,
              UbWorkers& workers,
              std::function<void(UbArrived&)> take);

    /**
     * Run windows while there is much to do.
     * @param [in] fromPs How far endpoints and planes have come, all arrivals taken over.
     * @param [in] barrierPs How far they may go.
     * @param [in] leastHops Stop when fewer packet-hops are moved in a lookahead.
     * @param [in] goesOn Whether the endpoints may begin another window; is told of the
     * packet-hops that are known to have been moved.
     * @return How far endpoints and planes have come, all arrivals taken over.
     */
    int64_t Run(int64_t fromPs,
                int64_t barrierPs,
                uint64_t leastHops,
                const std::function<bool(uint64_t)>& goesOn);

  private:
    /// What endpoints and planes tell each other in a window.
    struct Window
    {
        int64_t endPs{0};               //!< its end
        std::vector<UbInjections> sent; //!< packets for each process
        std::vector<UbArrived> arrived; //!< what arrived in each process
        std::vector<uint64_t> hops;     //!< packet-hops moved in each process
    };

    /// A plane, or a part of one.
    struct alignas(64) Process
    {
        UbPlane* of{nullptr};             //!< it
        UbPlaneParts* parts{nullptr};     //!< all parts of the plane
        uint32_t number{0};               //!< which of them it is
        bool isInside{false};             //!< it has begun a window and not finished it
        uint64_t hops{0};                 //!< packet-hops moved before the window
        std::atomic<uint64_t> windows{0}; //!< windows that it has run
    };

    /**
     * @param [in] window Number of a window.
     * @return What is told in it; the same for one that is WINDOWS later.
     */
    Window& At(uint64_t window)
    {
        return m_windows[window % WINDOWS];
    }

    /**
     * Let the endpoints run a window, if all planes have come far enough.
     * @return What came of it.
     */
    UbProgress MoveEndpoints();

    /**
     * Let a process run a window, or some of it, if the endpoints have.
     * @param [in] number The process.
     * @return What came of it.
     */
    UbProgress MoveProcess(uint32_t number);

    /**
     * Let the endpoints take over what arrived in a window.
     * @param [in] window The window.
     */
    void Take(Window& window);

    UbEndpointProcess& m_endpoints;                       //!< the endpoints
    std::vector<std::unique_ptr<UbPlaneParts>>& m_planes; //!< the planes
    UbWorkers& m_workers;                                 //!< threads
    std::function<void(UbArrived&)> m_take;               //!< takes over what arrived
    std::array<Window, WINDOWS> m_windows;                //!< windows at work
    alignas(64) std::atomic<uint64_t> m_endpointsDone{0}; //!< windows that the endpoints have run
    uint32_t m_nProcesses{0};                             //!< planes, or parts of them
    std::unique_ptr<Process[]> m_processes;               //!< each of them
    int64_t m_fromPs{0};                                  //!< begin of the first window
    int64_t m_barrierPs{0};                               //!< end of the last one at the latest
    int64_t m_widthPs{0};                                 //!< length of a window
    uint64_t m_leastHops{0};                              //!< stop when fewer are moved
    uint64_t m_hops{0};                                   //!< packet-hops known to have been moved
    std::array<uint64_t, WINDOWS> m_hopsOf{};             //!< those of the last windows taken over
    const std::function<bool(uint64_t)>* m_goesOn{nullptr}; //!< whether to begin another window
    std::atomic<uint64_t> m_end{0};                         //!< number of windows, when known
};

} // namespace ns3

#endif // UB_WINDOWS_H
